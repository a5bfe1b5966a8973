"""What a series looks like in numbers: prices, volume, rows that say little. A month in memory at a time."""

from dataclasses import dataclass

import polars as pl

from storage.lake import Lake
from storage.schema import SeriesKey

__all__ = ["Statistics", "series_statistics"]

_FLAT = (pl.col("volume") == 0) & (pl.col("high") == pl.col("low"))
_SUMS = {  # of a month; over all months each sum is the sum of these
    "rows": pl.len(),
    "first_close": pl.col("close").first(),
    "last_close": pl.col("close").last(),
    "lowest": pl.col("low").min(),
    "highest": pl.col("high").max(),
    "volume": pl.col("volume").sum(),
    "quote_volume": pl.col("quote_volume").sum(),
    "quote_volume_missing": pl.col("quote_volume").null_count(),
    "zero_volume": (pl.col("volume") == 0).sum(),
    "flat": _FLAT.sum(),
}
_MEAN = pl.col("sum").sum() / pl.col("returns").sum()
_VARIANCE = (pl.col("square").sum() / pl.col("returns").sum() - _MEAN**2).clip(0)
_TOTALS = {
    "rows": pl.col("rows").sum(),
    "first_close": pl.col("first_close").first(),
    "last_close": pl.col("last_close").last(),
    "lowest": pl.col("lowest").min(),
    "highest": pl.col("highest").max(),
    "return_std": pl.when(pl.col("returns").sum() > 0).then(_VARIANCE.sqrt()),
    "volume": pl.col("volume").sum(),
    "volume_mean": pl.col("volume").sum() / pl.col("rows").sum(),
    "quote_volume": pl.when(pl.col("quote_volume_missing").sum() < pl.col("rows").sum()).then(
        pl.col("quote_volume").sum()
    ),
    "quote_volume_missing": pl.col("quote_volume_missing").sum(),
    "zero_volume": pl.col("zero_volume").sum(),
    "flat": pl.col("flat").sum(),
}


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
    months: list[pl.DataFrame] = []
    last, run, longest = pl.Series("close", [], dtype=pl.Float64), 0, 0
    for _, candles in lake.months(key):
        moves = pl.concat([last, candles["close"]]).log().diff().drop_nulls()
        months.append(candles.select(**_SUMS, returns=len(moves), sum=moves.sum(), square=moves.dot(moves)))
        last = candles["close"].tail(1)
        for length, flat in candles.select(_FLAT.rle().alias("runs"))["runs"].struct.unnest().iter_rows():
            run = run + length if flat else 0
            longest = max(longest, run)
    if not months:
        lake.read(key)  # raises, and says what to do
    return Statistics(**pl.concat(months).select(**_TOTALS).row(0, named=True), longest_flat=longest)
