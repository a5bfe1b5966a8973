"""Candle intervals and their calendar: when a candle opens, when it closes, how many fit.

Fixed intervals are counted from 1970-01-01 UTC, weeks from its first Monday, months by the calendar.
"""

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import total_ordering
from typing import Self

from storage.errors import CandleError

__all__ = ["INTERVALS", "Interval", "wall_clock_ms"]

_MINUTE = 60_000
_DAY = 86_400_000
_MONTH = "1M"

_MILLISECONDS: dict[str, int | None] = {
    "1s": 1_000,
    "1m": _MINUTE,
    "3m": 3 * _MINUTE,
    "5m": 5 * _MINUTE,
    "15m": 15 * _MINUTE,
    "30m": 30 * _MINUTE,
    "1h": 60 * _MINUTE,
    "2h": 120 * _MINUTE,
    "4h": 240 * _MINUTE,
    "6h": 360 * _MINUTE,
    "8h": 480 * _MINUTE,
    "12h": 720 * _MINUTE,
    "1d": _DAY,
    "3d": 3 * _DAY,
    "1w": 7 * _DAY,
    _MONTH: None,
}
INTERVALS: tuple[str, ...] = tuple(_MILLISECONDS)

_FIRST_MONDAY = 4 * _DAY  # 1970-01-05; 1970-01-01 was a Thursday


@total_ordering
@dataclass(frozen=True, slots=True)
class Interval:
    """A Binance interval by its name; `1m` is a minute and `1M` a month. Ordered by length.

    An unknown name is a CandleError that lists the known and names the one that was meant, such as 1h for 1H or 60m.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _MILLISECONDS:
            near = _meant(self.name)
            raise CandleError(
                f"expected an interval out of {', '.join(INTERVALS)} (case matters), found {self.name!r}; "
                + (f"did you mean {near}?" if near else "choose one")
            )

    @classmethod
    def of_slug(cls, slug: str) -> Self:
        """The interval whose `slug` this is."""
        return cls(_MONTH if slug == "1mo" else slug)

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: "Interval") -> bool:
        return INTERVALS.index(self.name) < INTERVALS.index(other.name)

    @property
    def milliseconds(self) -> int | None:
        """Length in ms; None for `1M`, whose length changes."""
        return _MILLISECONDS[self.name]

    @property
    def slug(self) -> str:
        """The name in file names: `1mo` for `1M`, so that it differs from `1m` without case too."""
        return "1mo" if self.name == _MONTH else self.name

    @property
    def phase_ms(self) -> int:
        """Offset of the grid from 1970-01-01 UTC in ms."""
        return _FIRST_MONDAY if self.name == "1w" else 0

    def floor(self, ms: int) -> int:
        """Open time of the candle that holds the instant `ms`."""
        if (step := self.milliseconds) is None:
            return _month_ms(_month_index(ms))
        return ms - (ms - self.phase_ms) % step

    def next(self, open_ms: int) -> int:
        """Open time of the candle after the one that opens at `open_ms`."""
        if (step := self.milliseconds) is None:
            return _month_ms(_month_index(open_ms) + 1)
        return open_ms + step

    def close(self, open_ms: int) -> int:
        """Close time as Binance gives it: the last millisecond before the next candle."""
        return self.next(open_ms) - 1

    def count(self, first_ms: int, last_ms: int) -> int:
        """Candles that open from `first_ms` to `last_ms`, both included and both open times."""
        if (step := self.milliseconds) is None:
            return max(0, _month_index(last_ms) - _month_index(first_ms) + 1)
        return max(0, (last_ms - first_ms) // step + 1)


def _meant(text: str) -> str:
    """The interval of that length, such as 1h for `1H`, `60m` or `1 hour`; empty where there is none."""
    found = re.fullmatch(r"(\d+)\s*(mo|[smhdw])[a-z]*", text.strip().lower())
    if found is None:
        return ""
    if found[2] == "mo":
        return _MONTH if found[1] == "1" else ""
    length = int(found[1]) * (_MILLISECONDS[f"1{found[2]}"] or 0)
    return next((name for name, known in _MILLISECONDS.items() if known == length), "")


def wall_clock_ms() -> int:
    """Now, in ms since 1970."""
    return time.time_ns() // 1_000_000


def _month_index(ms: int) -> int:
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return moment.year * 12 + moment.month - 1


def _month_ms(index: int) -> int:
    return int(datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000
