"""Candles out of files into the lake, and out of the lake into files. Commands alone do it: no task, no Prefect."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from storage.candle_files import write_candles
from storage.errors import CandleError
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger, Source
from storage.schema import SeriesKey, utc_text
from tasks.refs import SeriesRef

__all__ = ["export_file", "import_candles"]


def import_candles(home: Home, candles: pl.DataFrame, key: SeriesKey, *, origin: str) -> SeriesRef:
    """Upsert validated candles out of the file `origin` into the lake."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    with home.writing("import"):
        result = lake.upsert(key, candles, source=Source(kind="import", detail=origin, sha256=None))
    span = lake.span(key)
    assert span is not None, "an import of nothing is refused"
    return SeriesRef(
        series=key.name,
        interval=key.interval.name,
        rows=span.rows,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        added=result.added,
        requests=0,
        holes=len(ledger.holes(key, lake.open_times(key))),
    )


def export_file(home: Home, path: Path, key: SeriesKey, *, start_ms: int | None, end_ms: int | None) -> int:
    """Write candles of the lake to a CSV, JSON or Parquet file; returns how many."""
    lake = Lake(home.lake)
    candles = lake.read(key, start_ms, end_ms)
    if candles.is_empty():
        span = lake.span(key)
        assert span is not None, "a series that the lake does not have is refused above"
        raise CandleError(
            f"Expected candles of {key} between --start and --end, found none; the lake has them from "
            f"{utc_text(span.first_ms)} to {utc_text(span.last_ms)}, choose dates within."
        )
    write_candles(candles, path)
    return len(candles)
