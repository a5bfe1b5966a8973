"""What a series looks like in numbers: prices, volume, rows that say little. A month in memory at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from storage.lake import Lake
from storage.schema import SeriesKey

__all__ = ["Statistics", "series_statistics"]

_PRICES = ("open", "high", "low", "close")
_FLAT = (pl.col("volume") == 0) & (pl.col("high") == pl.col("low"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Prices are in the quote currency, volume in the base currency."""

    rows: int
    first_close: float
    last_close: float
    lowest: float
    highest: float
    return_std: float | None
    """Standard deviation of the log returns of closes that follow each other, per candle; None below two."""
    volume: float
    volume_mean: float
    quote_volume: float | None
    """Sum over the rows that have one; None if none has."""
    quote_volume_missing: int
    """Rows without quote volume."""
    zero_volume: int
    """Rows in which nothing was traded."""
    flat: int
    """Of these, rows whose price did not move either: a halted or a sleeping market."""
    longest_flat: int
    """Rows in the longest run of flat ones."""


def series_statistics(lake: Lake, key: SeriesKey) -> Statistics:
    """The numbers of a whole series. A series that the lake does not have is a LakeError."""
    totals = _Totals()
    for _, candles in lake.months(key):
        totals.add(candles)
    if not totals.rows:
        lake.read(key)  # raises, and says what to do
    return totals.finish()


class _Totals:
    def __init__(self) -> None:
        self.rows = self.zero = self.flat = self.longest = self.missing = self.returns = 0
        self.run = 0  # flat rows at the end of what was added so far
        self.volume = self.quote = self.square = self.sum = 0.0
        self.lowest, self.highest = float("inf"), 0.0
        self.first: float | None = None
        self.last: float | None = None

    def add(self, candles: pl.DataFrame) -> None:
        row = candles.select(
            pl.len().alias("rows"),
            pl.col("low").min(),
            pl.col("high").max(),
            pl.col("volume").sum(),
            pl.col("quote_volume").sum().alias("quote"),
            pl.col("quote_volume").null_count().alias("missing"),
            (pl.col("volume") == 0).sum().alias("zero"),
            _FLAT.sum().alias("flat"),
        ).row(0, named=True)
        self._add_sums(row)
        self._add_runs(candles.select(_FLAT.rle().alias("runs"))["runs"].struct.unnest().iter_rows())
        self._add_returns(candles["close"])

    def _add_sums(self, row: dict[str, Any]) -> None:
        self.rows += row["rows"]
        self.zero, self.flat, self.missing = (
            self.zero + row["zero"],
            self.flat + row["flat"],
            self.missing + row["missing"],
        )
        self.volume, self.quote = self.volume + row["volume"], self.quote + row["quote"]
        self.lowest, self.highest = min(self.lowest, row["low"]), max(self.highest, row["high"])

    def _add_runs(self, runs: Iterable[tuple[int, bool]]) -> None:
        for length, flat in runs:
            self.run = self.run + length if flat else 0
            self.longest = max(self.longest, self.run)

    def _add_returns(self, closes: pl.Series) -> None:
        before = pl.Series("close", [] if self.last is None else [self.last], dtype=pl.Float64)
        moves = pl.concat([before, closes]).log().diff().drop_nulls()
        self.returns, self.sum = self.returns + len(moves), self.sum + float(moves.sum())
        self.square += float((moves * moves).sum())
        self.first = closes[0] if self.first is None else self.first
        self.last = closes[-1]

    def finish(self) -> Statistics:
        assert self.first is not None
        assert self.last is not None
        mean = self.sum / self.returns if self.returns else 0.0
        variance = max(0.0, self.square / self.returns - mean * mean) if self.returns else None
        return Statistics(
            rows=self.rows,
            first_close=self.first,
            last_close=self.last,
            lowest=self.lowest,
            highest=self.highest,
            return_std=None if variance is None else variance**0.5,
            volume=self.volume,
            volume_mean=self.volume / self.rows,
            quote_volume=self.quote if self.missing < self.rows else None,
            quote_volume_missing=self.missing,
            zero_volume=self.zero,
            flat=self.flat,
            longest_flat=self.longest,
        )
