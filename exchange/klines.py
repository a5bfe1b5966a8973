"""Binance's klines answer: how many to ask for, what that weighs, and candles out of its rows."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from storage.interval import Interval
from storage.parse import BINANCE_COLUMNS
from storage.schema import Market, SeriesKey, off_grid, validate_candles

__all__ = ["PAGE_LIMITS", "KlinesPage", "klines_weight", "on_grid", "parse_first", "parse_page"]

# Most candles per weight: spot 1000 for 2, um 499 for 2 (500 would weigh 5).
PAGE_LIMITS: dict[Market, int] = {"spot": 1000, "um": 499}
UM_WEIGHTS = ((99, 1), (499, 2), (1000, 5), (1500, 10))  # up to this limit, this weight
WHOLE = ("open_time", "close_time", "trades")  # the other columns are decimals
WIRE_SCHEMA: dict[str, pl.DataType] = {
    name: pl.Int64() if name in WHOLE else pl.String() for name in BINANCE_COLUMNS
}

logger = logging.getLogger(__name__)


def klines_weight(market: Market, limit: int) -> int:
    """Request weight of a klines request with that `limit`."""
    if market == "spot":
        return 2
    return next(weight for most, weight in UM_WEIGHTS if limit <= most)


@dataclass(frozen=True, kw_only=True, slots=True)
class KlinesPage:
    """The candles of one answer, and what stood on the wire: rows, first and last open time."""

    candles: pl.DataFrame
    rows: int
    first_ms: int
    last_ms: int

    def filled(self, start_ms: int = 0) -> Iterator[pl.DataFrame]:
        """The candles that open at `start_ms` or later, if there are any."""
        candles = self.candles.filter(pl.col("open_time").dt.epoch("ms") >= start_ms)
        if not candles.is_empty():
            yield candles


def parse_page(key: SeriesKey, asked: Mapping[str, int], rows: list[list[Any]]) -> KlinesPage:
    """The candles of one answer, validated; duplicates, misorder and rows not asked for are refused."""
    if not isinstance(rows, list):
        raise ValueError(f"{type(rows).__name__} instead of a list of candles")
    frame = pl.DataFrame(rows, schema=WIRE_SCHEMA, orient="row", strict=True).drop("ignore")
    candles = frame.with_columns(
        pl.from_epoch(pl.col("open_time", "close_time"), time_unit="ms").dt.replace_time_zone("UTC"),
        pl.col(pl.String).cast(pl.Float64),
    )
    candles = on_grid(candles, key.interval, origin=str(key))
    candles = validate_candles(candles, key.interval, origin=str(key))
    first_ms, last_ms = (rows[0][0], rows[-1][0]) if rows else (0, 0)
    if rows and (first_ms < asked.get("startTime", 0) or last_ms > asked["endTime"]):
        raise ValueError(f"{len(rows)} candles from {first_ms} to {last_ms}, which were not asked for")
    return KlinesPage(candles=candles, rows=len(rows), first_ms=first_ms, last_ms=last_ms)


def on_grid(candles: pl.DataFrame, interval: Interval, *, origin: str) -> pl.DataFrame:
    """Without the rows that open between two candles, as some of 2017 and 2018 do (public-data #77)."""
    outside = off_grid(candles["open_time"], interval)
    if not outside.any():
        return candles
    logger.warning("%s: left out %d candles off the %s grid", origin, outside.sum(), interval)
    return candles.filter(~outside)


def parse_first(answer: Any) -> list[int]:
    """Open time of the one row that was asked for, if there is any; more rows answer another question."""
    return [int(row[0]) for row, _ in zip(answer, range(min(len(answer), 1)), strict=True)]
