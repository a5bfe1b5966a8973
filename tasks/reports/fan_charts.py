"""Pictures of forecasts as fans: before it happened, and over what then happened. All times UTC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kronos_model.evaluation.scores import FAN_QUANTILES, Scores
from kronos_model.features import FEATURES
from kronos_model.outlook import Outlook
from storage.past import Past
from storage.schema import utc_text
from tasks.reports import chart_style as style
from tasks.reports.chart_style import Chart, Floats

__all__ = ["Closes", "draw_fans", "draw_forecast", "fan_chart"]

Closes = Callable[[str, int, int], tuple[NDArray[np.int64], Floats]]
"""Open times (ms) and closes of a series' last so many candles, up to an origin."""

_SHOWN_CANDLES = 96  # before a forecast


def draw_forecast(past: Past, outlook: Outlook, target: Path) -> Path:
    """The newest closes and the fan of the forecast after them."""
    figure, (axis,) = style.canvas(
        1, title=f"{past.key.name} {past.key.interval}, the next {len(past.future)} candles"
    )
    closes = past.features[-_SHOWN_CANDLES:, FEATURES.index("close")]
    bands = np.array([outlook.quantile(level) for level in FAN_QUANTILES])
    _fan(axis, past.open_time[-_SHOWN_CANDLES:], closes, past.future, bands)
    axis.set_ylabel("close (quote currency)")
    style.legend(figure, [axis])
    return style.save(figure, target)


def draw_fans(scores: Scores, served: str, target: Path) -> Path:
    """A walk-forward forecast of each series as it is `served`, over what then happened."""
    fans, step_ms = scores.fans, scores.interval_ms
    title = f"Forecasts as served ({style.name_of(served)}) over what then happened"
    figure, axes = style.canvas(len(fans.origin_ms), columns=2, title=title)
    shown = min(fans.context.shape[1], 4 * scores.horizon)
    past, future = np.arange(1 - shown, 1) * step_ms, np.arange(1, scores.horizon + 1) * step_ms
    for index, axis in enumerate(axes):
        origin, bands = int(fans.origin_ms[index]), fans.quantiles[index, scores.index(served)]
        _fan(
            axis,
            origin + past,
            fans.context[index, -shown:],
            origin + future,
            bands,
            came=fans.realised[index],
        )
        axis.set(title=scores.series[index], ylabel="close (quote currency)")
    style.legend(figure, axes)
    return style.save(figure, target)


def fan_chart(scores: Scores, served: str, forecasts: pl.DataFrame, past: Closes) -> Chart:
    """The origins with the lowest, the middle and the highest CRPS of what is `served`.

    `forecasts` are as storage.evaluations keeps them.
    """
    losses = scores.crps[scores.index(served)].mean(axis=1)
    order = np.argsort(losses, kind="stable")
    figure, axes = style.canvas(3, height=4.4)
    for axis, (word, at) in zip(
        axes, (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])), strict=True
    ):
        name, origin = scores.series[scores.series_index[at]], int(scores.origin_ms[at])
        chosen = forecasts.filter(
            pl.col("series") == name,
            pl.col("origin").dt.epoch("ms") == origin,
            pl.col("model") == served,
        ).sort("step")
        bands = chosen.select(f"q{level:g}" for level in FAN_QUANTILES).to_numpy().T
        ahead_ms = chosen["open_time"].dt.epoch("ms").to_numpy()
        _fan(
            axis, *past(name, origin, 3 * scores.horizon), ahead_ms, bands, came=chosen["realised"].to_numpy()
        )
        axis.set_title(f"{word}: {name}\n{utc_text(origin)}, CRPS {10_000 * losses[at]:.0f} bps")
    axes[0].set_ylabel("close (quote currency)")
    style.legend(figure, axes)
    return Chart(
        "fans_extremes",
        "Best, median and worst forecast",
        f"Forecasts as served ({style.name_of(served)}) from the origins with their lowest, middle and highest CRPS "
        "of all, over what then happened. Nothing was chosen by hand.",
        figure,
    )


def _fan(
    axis: Axes,
    past_ms: NDArray[np.int64],
    closes: NDArray[np.floating[Any]],
    ahead_ms: NDArray[np.int64],
    bands: Floats,
    *,
    came: Floats | None = None,
) -> None:
    """Closes up to the origin, then the bands (Q, H) at FAN_QUANTILES and what came, all from the last close on."""
    ahead = np.insert(ahead_ms, 0, past_ms[-1]) / style.DAY_MS
    low, lower, middle, upper, high = np.insert(bands, 0, closes[-1], axis=1)
    axis.fill_between(ahead, low, high, color=style.BLUE, alpha=0.18, linewidth=0, label="5 to 95 %")
    axis.fill_between(ahead, lower, upper, color=style.BLUE, alpha=0.32, linewidth=0, label="25 to 75 %")
    axis.plot(ahead, middle, color=style.BLUE, label="median")
    axis.plot(past_ms / style.DAY_MS, closes, color=style.INK, label="close")
    if came is not None:
        axis.plot(ahead, np.insert(came, 0, closes[-1]), color=style.VERMILION, label="what happened")
    axis.axvline(ahead[0], color=style.MUTED, linestyle=":", linewidth=1)
    style.price_axis(axis)
    style.time_axis(axis)
