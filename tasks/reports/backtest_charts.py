"""Pictures of forecasts over what then happened, and of what trading on them would have earned. All times UTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.strategy import Backtest, StrategyConfig, backtest
from storage.schema import utc_text
from tasks.reports.chart_style import (
    BLUE,
    DAY_MS,
    GRID,
    INK,
    MUTED,
    VERMILION,
    Chart,
    Floats,
    canvas,
    colour_of,
    legend,
    name_of,
    time_axis,
)

__all__ = ["Past", "equity_chart", "fan_chart"]

Past = Callable[[str, int, int], tuple[NDArray[np.int64], Floats]]
"""Open times (ms) and closes of a series' last so many candles, up to an origin."""

_FEWEST_ORIGINS = 3  # of a series, for a strategy


def fan_chart(scores: Scores, forecasts: pl.DataFrame, past: Past, *, model: str = "challenger") -> Chart:
    """The origins with the lowest, the middle and the highest CRPS; `forecasts` as storage.evaluations keeps them."""
    losses = scores.crps[scores.index(model)].mean(axis=1)
    order = np.argsort(losses, kind="stable")
    figure, axes = canvas(3, height=4.4)
    for axis, (word, at) in zip(
        axes, (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])), strict=True
    ):
        name, origin = scores.series[scores.series_index[at]], int(scores.origin_ms[at])
        chosen = forecasts.filter(
            (pl.col("series") == name)
            & (pl.col("origin").dt.epoch("ms") == origin)
            & (pl.col("model") == model)
        ).sort("step")
        times, closes = past(name, origin, 3 * scores.horizon)
        _fan(axis, chosen, times, closes)
        axis.set_title(f"{word}: {name}\n{utc_text(origin)}, CRPS {10_000 * losses[at]:.0f} bps")
        axis.set_xlabel("time (UTC)")
    axes[0].set_ylabel("close (quote currency)")
    legend(figure, axes)
    return Chart(
        "fans_extremes",
        "Best, median and worst forecast",
        f"Forecasts of the {name_of(model)} from the origins with its lowest, middle and highest CRPS of all, over "
        "what then happened. Nothing was chosen by hand.",
        figure,
    )


def _fan(axis: Axes, chosen: pl.DataFrame, times: NDArray[np.int64], closes: Floats) -> None:
    origin, last = times[-1] / DAY_MS, closes[-1]
    ahead = np.concatenate([[origin], chosen["open_time"].dt.epoch("ms").to_numpy() / DAY_MS])
    rows = {
        level: np.concatenate([[last], chosen[f"q{level:g}"].to_numpy()])
        for level in (0.05, 0.25, 0.5, 0.75, 0.95)
    }
    axis.fill_between(ahead, rows[0.05], rows[0.95], color=BLUE, alpha=0.18, linewidth=0, label="5 to 95 %")
    axis.fill_between(ahead, rows[0.25], rows[0.75], color=BLUE, alpha=0.32, linewidth=0, label="25 to 75 %")
    axis.plot(ahead, rows[0.5], color=BLUE, linewidth=1.4, label="median")
    axis.plot(times / DAY_MS, closes, color=INK, linewidth=1.2, label="close")
    came = np.concatenate([[last], chosen["realised"].to_numpy()])
    axis.plot(ahead, came, color=VERMILION, linewidth=1.4, label="what happened")
    axis.axvline(origin, color=MUTED, linestyle=":", linewidth=1)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    time_axis(axis, ticks=5)


def equity_chart(scores: Scores, config: StrategyConfig) -> Chart | None:
    """What trading on each model's forecasts would have earned, all series weighing the same; None without trades."""
    series = [
        name for at, name in enumerate(scores.series) if (scores.series_index == at).sum() >= _FEWEST_ORIGINS
    ]
    if not series:
        return None
    figure, (axis,) = canvas(1)
    words = []
    for model in [name for name in ("challenger", "champion", "base") if name in scores.models]:
        tested = [backtest(scores, model, name, config) for name in series]
        times, equity = _together([(one.time_ms, one.equity) for one in tested])
        axis.step(
            times / DAY_MS,
            equity,
            where="post",
            color=colour_of(scores, model),
            linewidth=1.6,
            label=name_of(model),
        )
        if model == "challenger":
            words = [_in_words(one) for one in tested]
            times, hold = _together([(one.time_ms, one.hold) for one in tested])
            axis.plot(times / DAY_MS, hold, color=MUTED, linewidth=1.2, label="buy and hold")
    axis.axhline(1, color=GRID, linewidth=1)
    axis.set(xlabel="time (UTC)", ylabel="equity, from 1")
    time_axis(axis, ticks=10)
    legend(figure, [axis])
    return Chart(
        "equity",
        "Illustration: what trading on it would have earned",
        f"No part of the gate, and no advice. At each origin long, short or flat by P(up) at the last step, entered at "
        f"the next open, with taker fees and {config.slippage_bps:g} bps of slippage; funding, spread, market impact "
        f"and limits are left out. All series weigh the same. The challenger: {'; '.join(words)}.",
        figure,
    )


def _together(curves: Sequence[tuple[NDArray[np.int64], Floats]]) -> tuple[NDArray[np.int64], Floats]:
    """The mean of several curves at every time of any of them, each holding its last value in between."""
    times = np.unique(np.concatenate([one for one, _ in curves]))
    rows = [values[np.maximum(np.searchsorted(own, times, side="right") - 1, 0)] for own, values in curves]
    return times, np.mean(rows, axis=0)


def _in_words(one: Backtest) -> str:
    sharpe = "none" if one.sharpe is None else f"{one.sharpe:.2f}"
    even = (
        "no trades" if one.break_even_bps is None else f"breaks even at {one.break_even_bps:.1f} bps per side"
    )
    gain, held = (100 * (curve[-1] - 1) for curve in (one.equity, one.hold))
    return (
        f"{one.series} {gain:+.1f} % (holding {held:+.1f} %), Sharpe {sharpe}, "
        f"deepest fall {100 * one.max_drawdown:.1f} %, turnover {one.turnover:.0f}, {even}"
    )
