"""The past that a model sees: the newest candles of a series as features, whole and followed by what is forecast.

Datasets, forecasts, the service and the served MLflow model all take it from here. C context bars, K >= C bars of
history, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kronos_model.features import FEATURES
from storage.errors import StorageError
from storage.interval import Interval
from storage.schema import SeriesKey, utc_text

if TYPE_CHECKING:
    from storage.lake import Lake
    from storage.ledger import Hole, Ledger

__all__ = [
    "Past",
    "PastError",
    "closes_before",
    "features_of",
    "following",
    "newest",
    "newest_past",
    "past_of",
]

_MONTHS_AT_FIRST = 2
_PRICES, _CLOSE = FEATURES[:4], FEATURES.index("close")
_AMOUNT = pl.coalesce("quote_volume", pl.col("volume") * pl.mean_horizontal(_PRICES)).alias("amount")


class PastError(StorageError):
    """A series whose newest candles cannot be continued: one is missing, or it has ceased to trade."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The candles that a model sees, without a hole, and the open times it forecasts."""

    key: SeriesKey
    features: NDArray[np.float32]  # (C, 6) in the order of FEATURES
    open_time: NDArray[np.int64]  # (C,) ms
    future: NDArray[np.int64]  # (H,) ms
    history: NDArray[np.float64]  # (K,) closes up to the origin, one per interval, further back than C

    @property
    def name(self) -> str:
        """Of the series."""
        return self.key.name

    @property
    def origin_ms(self) -> int:
        """Open time of the last candle."""
        return int(self.open_time[-1])

    @property
    def last_close(self) -> float:
        """Its close, as the model sees it: in float32."""
        return float(self.features[-1, _CLOSE])


def features_of(candles: pl.DataFrame, *, prices_only: bool = False) -> NDArray[np.float32]:
    """Features (C, 6) of candles; a missing quote volume becomes volume x (open + high + low + close) / 4.

    `prices_only` sets volume and amount to 0.
    """
    table = candles.select(*_PRICES, "volume", _AMOUNT).select(FEATURES).cast(pl.Float32)
    if prices_only:
        table = table.with_columns(pl.lit(0.0, pl.Float32).alias(name) for name in ("volume", "amount"))
    return np.ascontiguousarray(table.to_numpy())


def following(interval: Interval, last_ms: int, count: int) -> NDArray[np.int64]:
    """Open times (H,) in ms of the `count` candles after the one that opens at `last_ms`."""
    opened = [interval.next(last_ms)]
    while len(opened) < count:
        opened.append(interval.next(opened[-1]))
    return np.array(opened, dtype=np.int64)


def closes_before(
    interval: Interval, opened: NDArray[np.int64], closes: NDArray[np.float32], bars: int
) -> NDArray[np.float64]:
    """The last `bars` closes (K,) of candles that open at `opened` ms, one per interval.

    A hole keeps the close before it, and NaN stands before the first candle. Months have no grid of equal steps: of
    them the candles that there are count.
    """
    if interval.milliseconds is None:
        at = np.arange(len(opened) - bars, len(opened))
    else:
        back = interval.milliseconds * np.arange(bars - 1, -1, -1, dtype=np.int64)
        at = np.searchsorted(opened, opened[-1] - back, side="right") - 1
    history = np.full(bars, np.nan)
    history[at >= 0] = closes[at[at >= 0]]
    return history


def past_of(
    key: SeriesKey,
    candles: pl.DataFrame,
    *,
    lookback: int,
    horizon: int,
    history: int,
    tail: Hole | None = None,
) -> Past:
    """What a model sees of these candles, the newest of a series, oldest first: as many as `history`, if it has them.

    The last `lookback` are its features, and may lack none; `history` counts the closes of its past, at least as many.
    `tail` is where the exchange was asked for more and had nothing, as the ledger knows it. Raises PastError where
    that is, or where a candle is missing.
    """
    known, candles = candles, candles.tail(lookback)
    opened = candles["open_time"].dt.epoch("ms").to_numpy()
    if tail:
        raise PastError(
            f"Expected {key} to go on trading, found no candle after {utc_text(int(opened[-1]))} though the exchange "
            f"was asked up to {utc_text(tail.end_ms)}; it is halted or delisted: wait, or take it out of the series."
        )
    if len(opened) < lookback or key.interval.count(int(opened[0]), int(opened[-1])) != lookback:
        found = f"{len(opened)} from {utc_text(int(opened[0]))}" if len(opened) else "none"
        raise PastError(
            f"Expected the newest {lookback} candles of {key} without a hole, found {found} to "
            f"{utc_text(int(opened[-1])) if len(opened) else 'the end'} with some missing; run `kronos ingest` to "
            "repair the hole."
        )
    closes = closes_before(
        key.interval,
        known["open_time"].dt.epoch("ms").to_numpy(),
        known["close"].cast(pl.Float32).to_numpy(),
        history,
    )
    future = following(key.interval, int(opened[-1]), horizon)
    return Past(key, features_of(candles), opened, future, closes)


def newest_past(
    lake: Lake, ledger: Ledger, key: SeriesKey, *, lookback: int, horizon: int, history: int
) -> Past:
    """The past at the end of a series. Raises LakeError when the lake has none of it, PastError as past_of."""
    candles = newest(lake, key, max(lookback, history))
    return past_of(key, candles, lookback=lookback, horizon=horizon, history=history, tail=ledger.tail(key))


def newest(lake: Lake, key: SeriesKey, count: int, *, end_ms: int | None = None) -> pl.DataFrame:
    """The last `count` candles of a series, or of those that open before `end_ms`; fewer where it has no more."""
    months = [month for month in map(_month_ms, lake.files(key)) if end_ms is None or month < end_ms]
    taken = _MONTHS_AT_FIRST
    while True:  # backwards from the end, twice as far each time
        start = months[-taken] if taken < len(months) else None
        candles = lake.read(key, start, end_ms)
        if start is None or len(candles) >= count:
            return candles.tail(count)
        taken *= 2


def _month_ms(name: str) -> int:
    return int(np.datetime64(name, "ms").astype(np.int64))
