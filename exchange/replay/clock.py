"""The time a replayed exchange believes in: frozen, stepped by hand, or running at a speed."""

import threading
import time
from collections.abc import Callable

__all__ = ["ReplayClock"]


class ReplayClock:
    """Market time in ms since the epoch (UTC).

    With `speed=0` it stands still until `set` or `advance` moves it; with `speed=60` a market hour takes a
    real minute. Safe to share between threads.

    Rate limits need a second time, because the client that waits for them waits in real seconds whatever
    the market's clock says: `limits_ms` is real UTC time plus every forward step made by hand. It does not
    depend on `speed`, so the weight minute of a frozen or a fast replay is the real wall minute, and a test
    that replaces a client's sleep with `advance` moves the minute on without waiting.
    """

    def __init__(self, now_ms: int, *, speed: float = 0.0, wall: Callable[[], float] = time.time) -> None:
        if speed < 0:
            raise ValueError(f"expected a speed of 0 (frozen) or more, found {speed}; use set() to go back")
        self._lock = threading.Lock()
        self._wall = wall
        self._speed = speed
        self._anchor_ms = int(now_ms)
        self._anchor_wall = wall()
        self._stepped_ms = 0

    @property
    def now_ms(self) -> int:
        with self._lock:
            return self._now()

    @property
    def speed(self) -> float:
        """Market seconds per real second; 0 if it stands still."""
        return self._speed

    @property
    def limits_ms(self) -> int:
        """The time by which request weights, waits and bans are counted."""
        with self._lock:
            return int(self._wall() * 1000) + self._stepped_ms

    def set(self, now_ms: int) -> None:
        """Jump to a market time; backwards is allowed and hides candles again."""
        with self._lock:
            self._jump(int(now_ms))

    def advance(self, milliseconds: int) -> None:
        """Step the market time by so many milliseconds."""
        with self._lock:
            self._jump(self._now() + int(milliseconds))

    def _jump(self, now_ms: int) -> None:
        self._stepped_ms += max(0, now_ms - self._now())
        self._anchor_ms, self._anchor_wall = now_ms, self._wall()

    def _now(self) -> int:
        return self._anchor_ms + int((self._wall() - self._anchor_wall) * self._speed * 1000)
