"""The report of an ingest: numbers of every series as JSON in the home, and a picture. All times UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exchange.inventory import Inventory, take_inventory
from storage.atomic import write_json
from storage.interval import Interval, wall_clock_ms
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Hole, Ledger
from storage.schema import SeriesKey, utc_text
from storage.statistics import series_statistics
from tasks.refs import FailureRef, IngestRef, SeriesRef
from tasks.reports import chart_style as style

__all__ = ["draw_ingest", "report_ingest"]

_SHOWN_CANDLES = 120
_SHOWN_SERIES = 4
_COVERED_SERIES = 60


def report_ingest(home: Home, series: Sequence[SeriesRef], failures: Sequence[FailureRef]) -> IngestRef:
    """Write `reports/ingest-<time>.json` and its picture, unless nothing was new."""
    if not any(one.added for one in series) and not failures:
        return IngestRef(series=tuple(series), failures=(), report=None, picture=None)
    lake, ledger, now_ms = Lake(home.lake), Ledger(home.lake), wall_clock_ms()
    keys = [SeriesKey.parse(one.series, one.interval) for one in series]
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    target = home.reports / f"ingest-{moment:%Y%m%dT%H%M%S}-{now_ms % 1000:03d}.json"
    entries = [_entry(lake, ledger, key, ref, now_ms) for key, ref in zip(keys, series, strict=True)]
    write_json(
        target,
        {
            "version": 1,
            "made": utc_text(now_ms),
            "series": entries,
            "failures": [asdict(one) for one in failures],
        },
    )
    picture = None
    if keys:
        latest = {key.name: lake.read(key, _from_ms(lake, key)) for key in keys[:_SHOWN_SERIES]}
        coverage = {key.name: _coverage(lake, key) for key in keys[:_COVERED_SERIES]}
        picture = str(draw_ingest(latest, coverage, target.with_suffix(".png")))
    return IngestRef(series=tuple(series), failures=tuple(failures), report=str(target), picture=picture)


def _entry(lake: Lake, ledger: Ledger, key: SeriesKey, ref: SeriesRef, now_ms: int) -> dict[str, Any]:
    """One series in the report; times as text, prices in the quote currency."""
    held = take_inventory(lake, ledger, key, now_ms=now_ms)
    return {
        "series": key.name,
        "interval": key.interval.name,
        "first": utc_text(held.first_ms),
        "last": utc_text(held.last_ms),
        "new": ref.added,
        "requests": ref.requests,
        "zips": ref.zips,
        "bytes": held.bytes,
        "last_source": held.last_source,
        "holes": {status: held.count(status) for status in ("outage", "open", "repaired", "stale")},
        "hole_list": [_hole(held, hole) for hole in (*held.holes, *([held.tail] if held.tail else []))],
        "failed_parts": [asdict(failure) for failure in held.failures],
        **asdict(series_statistics(lake, key)),
    }


def _hole(held: Inventory, hole: Hole) -> dict[str, Any]:
    return {
        "from": utc_text(hole.start_ms),
        "to": utc_text(hole.end_ms),
        "candles": hole.candles,
        "status": hole.status,
        "known_as": held.names.get(hole.start_ms),
    }


def _from_ms(lake: Lake, key: SeriesKey) -> int:
    span = lake.span(key)
    assert span is not None, "only stored series are reported"
    length = key.interval.milliseconds or 31 * 86_400_000
    return span.last_ms - (_SHOWN_CANDLES - 1) * length


def _coverage(lake: Lake, key: SeriesKey) -> dict[str, float]:
    """By month, the share of the candles that fit between the series' ends which the lake has."""
    span, interval = lake.span(key), key.interval
    assert span is not None, "only stored series are reported"
    first_ms, last_ms = span.first_ms, span.last_ms
    held: Counter[int] = Counter()
    for times in lake.open_times(key):
        months = times["open_time"].dt.truncate("1mo").dt.epoch("ms")
        held.update(dict(months.value_counts().iter_rows()))
    shares: dict[str, float] = {}
    at = Interval("1M").floor(first_ms)
    while at <= last_ms:
        following = Interval("1M").next(at)
        begin = interval.floor(max(first_ms, at) - 1)
        expected = interval.count(interval.next(begin), min(last_ms, following - 1))
        shares[datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m")] = held[at] / max(expected, 1)
        at = following
    return shares


def draw_ingest(
    latest: Mapping[str, pl.DataFrame], coverage: Mapping[str, Mapping[str, float]], target: Path
) -> Path:
    """The latest candles of some series, and of all how complete each month is, from 0 to 1."""
    columns = min(len(latest), 2)
    rows = -(-len(latest) // columns)
    height = 0.6 + 0.28 * len(coverage)
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(11, 3 * rows + height + 1))
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[3.0] * rows, height])
        for place, (name, candles) in enumerate(latest.items()):
            _candlesticks(figure.add_subplot(grid[place // columns, place % columns]), name, candles)
        _coverage_map(figure, figure.add_subplot(grid[rows, :]), coverage)
    return style.save(figure, target)


def _candlesticks(axis: Axes, name: str, candles: pl.DataFrame) -> None:
    times = candles["open_time"].dt.epoch("ms").to_numpy() / style.DAY_MS
    opened, high, low, close = (candles[one].to_numpy() for one in ("open", "high", "low", "close"))
    colours = np.where(close >= opened, style.GREEN, style.VERMILION)
    width = 0.7 * (np.diff(times).min() if len(times) > 1 else 1.0)
    axis.vlines(times, low, high, color=colours, linewidth=0.7)
    axis.bar(times, np.abs(close - opened), width=width, bottom=np.minimum(opened, close), color=colours)
    axis.set(title=name, ylabel="price (quote currency)", ylim=(low.min(), high.max()))
    style.price_axis(axis)
    style.time_axis(axis)


def _coverage_map(figure: Figure, axis: Axes, coverage: Mapping[str, Mapping[str, float]]) -> None:
    months = sorted({month for shares in coverage.values() for month in shares})
    table = [[shares.get(month, np.nan) for month in months] for shares in coverage.values()]
    picture = axis.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    step = max(1, len(months) // 12)
    axis.set_xticks(range(0, len(months), step), months[::step])
    axis.set_yticks(range(len(coverage)), list(coverage))
    axis.grid(False)
    axis.set_title("share of each month's candles that the lake has")
    figure.colorbar(picture, ax=axis, pad=0.01)
