"""Forecasts that people take away: one row per step as CSV or Parquet, one object per forecast as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.atomic import write_json
from storage.candle_files import write_table
from storage.errors import StorageError
from storage.forecasts import StoredForecast

__all__ = ["check_export", "write_forecasts"]

_SUFFIXES = (".csv", ".json", ".parquet")


def check_export(path: Path) -> None:
    """StorageError where forecasts cannot be written under this name; told before they are made."""
    if path.is_dir():
        raise StorageError(f"Expected a file at {path}, found a folder; choose another name.")
    if path.suffix.lower() not in _SUFFIXES:
        raise StorageError(
            f"Expected a file that ends in {', '.join(_SUFFIXES)}, found {path.name}; rename it."
        )


def write_forecasts(forecasts: Sequence[StoredForecast], path: Path) -> int:
    """Write forecasts atomically; the number of steps written. Times are UTC: ISO in CSV, ms in JSON."""
    check_export(path)
    rows = pl.concat([_rows(one) for one in forecasts])
    if path.suffix.lower() == ".json":
        write_json(path, [_object(one) for one in forecasts])
    else:
        write_table(rows, path)
    return len(rows)


def _rows(one: StoredForecast) -> pl.DataFrame:
    return one.frame().select(
        pl.lit(one.key.market).alias("market"),
        pl.lit(one.key.symbol).alias("symbol"),
        pl.lit(str(one.key.interval)).alias("interval"),
        pl.lit(one.origin_ms).cast(pl.Datetime("ms", "UTC")).alias("origin"),
        pl.lit(one.model_digest).alias("model_digest"),
        pl.lit(float(one.summary["last_close"])).alias("last_close"),
        pl.all(),
    )


def _object(one: StoredForecast) -> dict[str, Any]:
    steps = one.frame().with_columns(pl.col("open_time").dt.epoch("ms")).to_dicts()
    return {
        "market": one.key.market,
        "symbol": one.key.symbol,
        "interval": str(one.key.interval),
        "origin_ms": one.origin_ms,
        "model_digest": one.model_digest,
        "saved_ms": one.saved_ms,
        "summary": one.summary,
        "steps": steps,
    }
