"""Pictures of candles and of what is forecast after them, as PNG files. All times UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import matplotlib.dates as mdates
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from kronos_model.evaluation.scores import Scores
from kronos_model.outlook import Outlook
from storage.atomic import atomic_path

__all__ = ["draw_fans", "draw_forecast", "draw_ingest"]

# Okabe and Ito's palette: distinguishable with every common colour vision.
BLUE, ORANGE, GREEN, GREY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#6B7280", "#D55E00"


def draw_forecast(
    *,
    title: str,
    unit: str,
    context_ms: NDArray[np.int64],
    context_close: NDArray[np.floating[Any]],
    future_ms: NDArray[np.int64],
    outlook: Outlook,
    target: Path,
) -> Path:
    """Closes before the origin and the fan of a forecast after it."""
    figure, (axis,) = _canvas(1, title)
    past = _dates(context_ms)
    future = np.concatenate([past[-1:], _dates(future_ms)])
    axis.plot(past, context_close, color="black", linewidth=1.2, label="close")
    bands = [outlook.quantile(level) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
    _fan(axis, future, np.insert(bands, 0, context_close[-1], axis=1))
    axis.set(ylabel=unit, xlabel="time (UTC)")
    _legend(figure, axis)
    _time_axis(axis)
    return _save(figure, target)


def draw_fans(scores: Scores, target: Path, *, model: str = "challenger") -> Path:
    """A walk-forward forecast of each series over what then happened."""
    fans, step_ms = scores.fans, scores.interval_ms
    figure, axes = _canvas(len(fans.origin_ms), f"Forecasts by the {model} over what then happened")
    for index, axis in enumerate(axes):
        origin, context = int(fans.origin_ms[index]), fans.context[index]
        shown = min(len(context), 4 * scores.horizon)
        past = _dates(origin - step_ms * np.arange(shown - 1, -1, -1))
        future = _dates(origin + step_ms * np.arange(scores.horizon + 1))
        last = context[-1]
        quantiles = fans.quantiles[index, scores.index(model)]  # (Q, H)
        _fan(axis, future, np.concatenate([np.full((len(quantiles), 1), last), quantiles], axis=1))
        axis.plot(past, context[-shown:], color="black", linewidth=1.2, label="close")
        axis.plot(
            future, [last, *fans.realised[index]], color=VERMILION, linewidth=1.2, label="what happened"
        )
        axis.set(title=scores.series[index], xlabel="time (UTC)", ylabel="close (quote currency)")
        _time_axis(axis)
    _legend(figure, axes[0])
    return _save(figure, target)


def draw_ingest(
    latest: Mapping[str, pl.DataFrame], coverage: Mapping[str, Mapping[str, float]], target: Path
) -> Path:
    """The latest candles of some series, and of all how complete each month is, from 0 to 1."""
    columns = min(len(latest), 2)
    rows = -(-len(latest) // columns)
    height = 0.6 + 0.28 * len(coverage)
    figure = Figure(figsize=(11, 3 * rows + height + 1), dpi=120, layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[3.0] * rows, height])
    for place, (name, candles) in enumerate(latest.items()):
        _candlesticks(figure.add_subplot(grid[place // columns, place % columns]), name, candles)
    _coverage_map(figure, figure.add_subplot(grid[rows, :]), coverage)
    return _save(figure, target)


def _candlesticks(axis: Axes, name: str, candles: pl.DataFrame) -> None:
    times = _dates(candles["open_time"].dt.epoch("ms").to_numpy())
    opened, high, low, close = (candles[one].to_numpy() for one in ("open", "high", "low", "close"))
    colours = np.where(close >= opened, GREEN, VERMILION)
    width = 0.7 * (np.diff(times).min() if len(times) > 1 else 1.0)
    axis.vlines(times, low, high, color=colours, linewidth=0.7)
    axis.bar(times, np.abs(close - opened), width=width, bottom=np.minimum(opened, close), color=colours)
    axis.set(title=name, ylabel="price (quote currency)", ylim=(low.min(), high.max()))
    axis.xaxis.axis_date("UTC")
    axis.tick_params(axis="x", labelsize=8, rotation=30)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _coverage_map(figure: Figure, axis: Axes, coverage: Mapping[str, Mapping[str, float]]) -> None:
    months = sorted({month for shares in coverage.values() for month in shares})
    table = [[shares.get(month, np.nan) for month in months] for shares in coverage.values()]
    picture = axis.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    step = max(1, len(months) // 12)
    axis.set_xticks(range(0, len(months), step), months[::step], fontsize=8)
    axis.set_yticks(range(len(coverage)), list(coverage), fontsize=8)
    axis.set_title("share of each month's candles that the lake has", fontsize=10)
    figure.colorbar(picture, ax=axis, pad=0.01)


def _fan(axis: Axes, times: NDArray[np.float64], quantiles: NDArray[np.floating[Any]]) -> None:
    low, lower, middle, upper, high = quantiles
    axis.fill_between(times, low, high, color=BLUE, alpha=0.18, linewidth=0, label="5 to 95 %")
    axis.fill_between(times, lower, upper, color=BLUE, alpha=0.32, linewidth=0, label="25 to 75 %")
    axis.plot(times, middle, color=BLUE, linewidth=1.4, label="median")
    axis.axvline(times[0], color=GREY, linestyle=":", linewidth=1)


def _canvas(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """One wide axes, or as many as asked for in two columns."""
    columns, rows = min(count, 2), (count + 1) // 2
    figure = Figure(figsize=(5.2 * columns if count > 1 else 9, 4.2 * rows), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _dates(ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Matplotlib's day numbers of times in ms since the epoch, UTC."""
    return ms / 86_400_000


def _legend(figure: Figure, axis: Axes) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)


def _time_axis(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    locator = mdates.AutoDateLocator(tz=UTC, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]


def _save(figure: Figure, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as draft:
        figure.savefig(draft, format="png")
    return target
