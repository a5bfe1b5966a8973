"""The report of an ingest: numbers of every series as JSON in the home, and a picture."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from exchange.inventory import Inventory, take_inventory
from storage.atomic import write_json
from storage.interval import Interval
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Hole, Ledger
from storage.schema import SeriesKey, utc_text
from storage.statistics import series_statistics
from tasks.refs import FailureRef, IngestRef, SeriesRef
from tasks.reports.forecast_charts import draw_ingest

__all__ = ["report_ingest"]

_SHOWN_CANDLES = 120
_SHOWN_SERIES = 4
_COVERED_SERIES = 60


def report_ingest(home: Home, series: Sequence[SeriesRef], failures: Sequence[FailureRef]) -> IngestRef:
    """Write `reports/ingest-<time>.json` and its picture, unless nothing was new."""
    ingested = IngestRef(series=tuple(series), failures=tuple(failures), report=None, picture=None)
    if not any(one.added for one in series) and not failures:
        return ingested
    lake, ledger, now_ms = Lake(home.lake), Ledger(home.lake), time.time_ns() // 1_000_000
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
