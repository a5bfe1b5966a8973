"""The lake as the service reads it: which series there are, their newest candles, how fresh and whole they are.

What was read is kept until a file of the series changes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import polars as pl

from exchange.inventory import Inventory, take_inventory
from kronos_model.context import history_bars
from service.errors import Refused
from storage.lake import Lake
from storage.layout import Home, series_folder
from storage.ledger import Ledger
from storage.past import Past, PastError, newest, past_of
from storage.schema import SeriesKey, utc_text

__all__ = ["CandleCache"]

T = TypeVar("T")

_KEPT = 256  # answers
_SERIES_S = 2.0  # seconds for which the list of series is believed


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
        question = ("tail", key, count, end_ms)
        return self._keep(question, key, lambda: newest(self._lake, key, count, end_ms=end_ms))

    def last_ms(self, key: SeriesKey) -> int:
        """Open time of the newest candle."""
        return int(self.tail(key, 1)["open_time"].dt.epoch("ms")[-1])

    def inventory(self, key: SeriesKey) -> Inventory:
        """Range, holes and freshness as of now."""
        now_ms = self.now_ms()
        question = ("inventory", key, key.interval.floor(now_ms))
        return self._keep(question, key, lambda: take_inventory(self._lake, self._ledger, key, now_ms=now_ms))

    def behind(self, key: SeriesKey, opened_ms: int) -> int:
        """Candles that have closed since the one that opened then."""
        after, now = key.interval.next(opened_ms), self.now_ms()
        return key.interval.count(after, key.interval.floor(now) - 1) if now > after else 0

    def past(self, key: SeriesKey, *, lookback: int, horizon: int, origin_ms: int | None) -> Past:
        """What is known up to the newest candle, or up to the one that opens at `origin_ms`."""
        end_ms = None if origin_ms is None else origin_ms + 1
        history = history_bars(lookback, key.interval.next(0))
        candles = self.tail(key, history, end_ms=end_ms)
        opened = candles["open_time"].dt.epoch("ms").to_numpy()
        if origin_ms is not None and (not len(opened) or opened[-1] != origin_ms):
            raise Refused(
                404,
                f"Expected a candle of {key} that opens at {_when(origin_ms)}, found none; /candles lists them.",
            )
        # The end alone can be stale: what came after an earlier candle is in the lake.
        tail = self._ledger.tail(key) if origin_ms is None else None
        try:
            return past_of(key, candles, lookback=lookback, horizon=horizon, history=history, tail=tail)
        except PastError as error:
            raise Refused(409, str(error)) from error

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
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return value

    def _state(self, key: SeriesKey) -> Hashable:
        folder = series_folder(self._home.lake, key)
        files = [*self._lake.files(key).values(), folder / "ledger.json"]
        facts = [path.stat() for path in files if path.exists()]
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in facts)


def _when(ms: int) -> str:
    try:
        return utc_text(ms)
    except (ValueError, OverflowError):  # no date of this calendar
        return f"{ms} ms"
