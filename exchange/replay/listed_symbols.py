"""The symbols of one replayed market and the intervals that can be served of each."""

import threading
from collections.abc import Mapping

import polars as pl

from exchange.replay.series import ReplaySeries
from storage.interval import INTERVALS, Interval
from storage.schema import Market, SeriesKey

__all__ = ["ReplayMarket"]


class ReplayMarket:
    """Stored series, and coarser ones aggregated from them when they are first asked for."""

    def __init__(self, name: Market, candles: Mapping[SeriesKey, pl.DataFrame], *, weight_limit: int) -> None:
        self.name = name
        self.weight_limit = weight_limit
        self._lock = threading.Lock()
        self._stored = {
            (key.symbol, key.interval.name): ReplaySeries(frame, key.interval, name)
            for key, frame in sorted(candles.items(), key=lambda item: item[0])
            if key.market == name
        }
        self._derived: dict[tuple[str, str], ReplaySeries] = {}
        self.symbols = tuple(dict.fromkeys(symbol for symbol, _ in self._stored))

    def finest(self, symbol: str) -> ReplaySeries:
        """The stored series of a symbol with the shortest interval."""
        return min(self._all(symbol), key=lambda one: one.interval)

    def intervals(self, symbol: str) -> list[str]:
        """Names of the intervals that `series` has for a symbol."""
        return [
            name
            for name in INTERVALS
            if (symbol, name) in self._stored or self._source(symbol, Interval(name)) is not None
        ]

    def series(self, symbol: str, interval: Interval) -> ReplaySeries | None:
        """The series of an interval, stored or aggregated; none if no stored interval divides it."""
        asked = (symbol, interval.name)
        if asked in self._stored:
            return self._stored[asked]
        with self._lock:
            if asked not in self._derived and (source := self._source(symbol, interval)) is not None:
                self._derived[asked] = source.coarser(interval)
            return self._derived.get(asked)

    def _all(self, symbol: str) -> list[ReplaySeries]:
        return [one for (name, _), one in self._stored.items() if name == symbol]

    def _source(self, symbol: str, interval: Interval) -> ReplaySeries | None:
        sources = (one for one in self._all(symbol) if _divides(one.interval, interval))
        return max(sources, key=lambda one: one.interval, default=None)


def _divides(fine: Interval, coarse: Interval) -> bool:
    """Whether every coarse candle is made of whole fine ones; days make weeks and months."""
    if not fine < coarse or fine.milliseconds is None:
        return False
    whole = coarse.milliseconds if coarse.name not in ("1w", "1M") else Interval("1d").milliseconds
    return whole is not None and whole % fine.milliseconds == 0
