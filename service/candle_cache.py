"""The lake as the service reads it: which series there are, their newest candles, how fresh and whole they are.

What was read is kept until a file of the series changes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from exchange.inventory import Inventory, take_inventory
from service.errors import Refused
from storage.interval import Interval
from storage.lake import Lake
from storage.layout import Home, series_folder
from storage.ledger import Ledger
from storage.schema import SeriesKey, utc_text

__all__ = ["CandleCache", "Past"]

T = TypeVar("T")

_KEPT = 256  # answers
_SERIES_S = 2.0  # seconds for which the list of series is believed
_MONTHS_AT_FIRST = 2


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The candles that a model sees, without a hole, and the open times it forecasts."""

    key: SeriesKey
    features: NDArray[np.float32]  # (C, 6)
    open_time: NDArray[np.int64]  # (C,) ms
    future: NDArray[np.int64]  # (H,) ms

    @property
    def origin_ms(self) -> int:
        """Open time of the last candle."""
        return int(self.open_time[-1])

    @property
    def last_close(self) -> float:
        """Its close."""
        return float(self.features[-1, 3])


class CandleCache:
    """A home's candles. Safe to use from many threads."""

    def __init__(self, home: Home, *, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self._home = home
        self._lake = Lake(home.lake)
        self._ledger = Ledger(home.lake)
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._series: tuple[float, list[SeriesKey]] = (float("-inf"), [])

    def series(self) -> list[SeriesKey]:
        """Every series of the lake."""
        asked, keys = self._series
        if time.monotonic() - asked > _SERIES_S:
            keys = self._lake.series()
            self._series = (time.monotonic(), keys)
        return keys

    def resolve(self, symbol: str, interval: str | None) -> SeriesKey:
        """The series meant by `BTCUSDT` or `um:BTCUSDT`, at an interval unless there is only one."""
        market, _, name = symbol.rpartition(":")
        named = [key for key in self.series() if key.symbol == name and market in ("", key.market)]
        if not named:
            known = ", ".join(sorted({key.name for key in self.series()})[:12])
            raise Refused(
                404,
                f"Expected a symbol that the lake has ({known or 'it is empty: run `kronos ingest`'}), "
                f"found {symbol!r}; /series lists them.",
            )
        fitting = [key for key in named if interval in (None, key.interval.name)]
        if not fitting:
            known = ", ".join(str(key.interval) for key in named)
            raise Refused(
                404,
                f"Expected an interval that the lake has of {symbol} ({known}), found {interval!r}; choose one.",
            )
        if len(fitting) > 1:
            known = ", ".join(map(str, fitting))
            raise Refused(422, f"Expected one series, found {known}; name market and interval.")
        return fitting[0]

    def tail(self, key: SeriesKey, count: int, *, end_ms: int | None = None) -> pl.DataFrame:
        """The last `count` candles, or those that open before `end_ms`."""
        return self._keep(("tail", key, count, end_ms), key, lambda: self._tail(key, count, end_ms))

    def last_ms(self, key: SeriesKey) -> int:
        """Open time of the newest candle."""
        return int(self.tail(key, 1)["open_time"].dt.epoch("ms")[-1])

    def inventory(self, key: SeriesKey) -> Inventory:
        """Range, holes and freshness as of now."""
        opened = key.interval.floor(self.now_ms())
        return self._keep(
            ("inventory", key, opened),
            key,
            lambda: take_inventory(self._lake, self._ledger, key, now_ms=self.now_ms()),
        )

    def behind(self, key: SeriesKey) -> int:
        """Candles that have closed since the newest one in the lake."""
        after, now = key.interval.next(self.last_ms(key)), self.now_ms()
        return key.interval.count(after, key.interval.floor(now) - 1) if now > after else 0

    def past(self, key: SeriesKey, *, lookback: int, horizon: int, origin_ms: int | None) -> Past:
        """What a model sees up to the newest candle, or up to the one that opens at `origin_ms`."""
        end_ms = None if origin_ms is None else origin_ms + 1
        candles = self.tail(key, lookback, end_ms=end_ms)
        opened = candles["open_time"].dt.epoch("ms").to_numpy()
        if origin_ms is not None and (not len(opened) or opened[-1] != origin_ms):
            raise Refused(
                404,
                f"Expected a candle of {key} that opens at {_when(origin_ms)}, found none; /candles lists them.",
            )
        if len(opened) < lookback or key.interval.count(int(opened[0]), int(opened[-1])) != lookback:
            raise Refused(
                409,
                f"Expected {lookback} candles of {key} without a hole up to {_when(int(opened[-1]))}, found "
                f"{len(opened)} with some missing; run `kronos ingest` to repair the hole.",
            )
        return Past(key, _features(candles), opened, _following(key.interval, int(opened[-1]), horizon))

    def _tail(self, key: SeriesKey, count: int, end_ms: int | None) -> pl.DataFrame:
        months = [_month_ms(name) for name in self._lake.files(key)]
        if end_ms is not None:
            months = [month for month in months if month < end_ms]
        taken = _MONTHS_AT_FIRST
        while True:  # backwards from the end, twice as far each time
            start = months[-taken] if taken < len(months) else None
            candles = self._lake.read(key, start, end_ms)
            if start is None or len(candles) >= count:
                return candles.tail(count)
            taken *= 2

    def _keep(self, question: Hashable, key: SeriesKey, answer: Callable[[], T]) -> T:
        """The answer, computed anew when a file of the series has changed."""
        state = self._state(key)
        with self._lock:
            known = self._kept.get(question)
            if known is not None and known[0] == state:
                self._kept.move_to_end(question)
                return cast(T, known[1])
        value = answer()
        with self._lock:
            self._kept[question] = (state, value)
            self._kept.move_to_end(question)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return value

    def _state(self, key: SeriesKey) -> Hashable:
        folder = series_folder(self._home.lake, key)
        files = [*self._lake.files(key).values(), folder / "ledger.json"]
        facts = [path.stat() for path in files if path.exists()]
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in facts)


def _features(candles: pl.DataFrame) -> NDArray[np.float32]:
    amount = pl.coalesce(
        "quote_volume", pl.col("volume") * pl.mean_horizontal("open", "high", "low", "close")
    )
    columns = candles.select("open", "high", "low", "close", "volume", amount.alias("amount"))
    return columns.to_numpy().astype(np.float32)


def _following(interval: Interval, last_ms: int, count: int) -> NDArray[np.int64]:
    opened = [interval.next(last_ms)]
    while len(opened) < count:
        opened.append(interval.next(opened[-1]))
    return np.array(opened, dtype=np.int64)


def _month_ms(name: str) -> int:
    year, month = name.split("-")
    return int((np.datetime64(f"{year}-{month}", "ms") - np.datetime64(0, "ms")).astype(np.int64))


def _when(ms: int) -> str:
    try:
        return utc_text(ms)
    except (ValueError, OverflowError):  # no date of this calendar
        return f"{ms} ms"
