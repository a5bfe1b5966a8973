"""The request weight of one IP address, kept below the exchange's limit per minute.

Binance counts weight per address and minute and says the count with every answer (X-MBX-USED-WEIGHT-1M), so
that other programs behind the same address are seen too. The counter falls back to zero when the exchange's
minute turns. The local clock is not asked when that is: a window first seen at some moment is over 60 seconds
later for certain.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from exchange.errors import Banned

__all__ = ["LIMITS_PER_MINUTE", "WeightBudget"]

LIMITS_PER_MINUTE = {"spot": 6000, "um": 2400}  # until exchangeInfo says otherwise
WINDOW_S = 60.0
HEADER = "x-mbx-used-weight-1m"

logger = logging.getLogger(__name__)


class WeightBudget:
    """Share one between all clients of a market in this process; it may be used from several threads."""

    def __init__(
        self,
        limit_per_minute: int,
        share: float = 0.85,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if limit_per_minute < 1 or not 0 < share <= 1:
            raise ValueError(
                "Expected a limit of at least 1 per minute and a share within (0, 1], "
                f"found {limit_per_minute} and {share}; the exchange's limits are {LIMITS_PER_MINUTE}."
            )
        self.limit_per_minute = limit_per_minute
        self.share = share
        self.used = 0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._window_end: float | None = None  # None: no weight seen in this window yet
        self._paused_until = float("-inf")
        self._ban: tuple[float, Banned] | None = None

    def before(self, weight: int) -> None:
        """Claim `weight`, after as long a wait as that takes; raises Banned while a ban lasts."""
        now = self._clock()
        while (ready := self._claim(weight, now)) > now:
            logger.info("waiting %.1f s for request weight (%d used)", ready - now, self.used)
            self._sleep(ready - now)
            now = max(self._clock(), ready)

    def after(self, headers: Mapping[str, str]) -> None:
        """Believe the exchange's own count."""
        value = next((text for name, text in headers.items() if name.lower() == HEADER), "")
        if not value.isdigit():
            return
        with self._lock:
            used = int(value)
            if used < self.used or self._window_end is None:  # the exchange's minute has turned
                self._window_end = self._clock() + WINDOW_S
            self.used = used

    def pause(self, seconds: float) -> None:
        """Let nobody ask for so long (429 with Retry-After)."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def forbid(self, ban: Banned) -> None:
        """Refuse every request until the ban is over: each one would make it longer."""
        with self._lock:
            self._ban = (self._clock() + ban.seconds, ban)

    def _claim(self, weight: int, now: float) -> float:
        """Now if the weight is claimed, else when to try again."""
        with self._lock:
            if self._ban is not None and now < self._ban[0]:
                raise self._ban[1]
            if now < self._paused_until:
                return self._paused_until
            if self._window_end is None or now >= self._window_end:
                self.used, self._window_end = 0, now + WINDOW_S
            allowed = max(self.limit_per_minute * self.share, weight)
            if self.used + weight > allowed:
                return self._window_end
            self.used += weight
            return now
