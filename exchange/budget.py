"""Request weight kept below the exchange's limit per minute; see exchange.weights for how it is counted."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from exchange.errors import Banned, RateLimited
from exchange.weights import WeightClaim, WeightState

__all__ = ["LIMITS_PER_MINUTE", "LONGEST_PAUSE_S", "SHARE", "WeightBudget"]

LIMITS_PER_MINUTE = {"spot": 6000, "um": 2400}  # until exchangeInfo says otherwise
SHARE = 0.92  # the rest is for other programs behind the address, which are only seen with the next answer
LONGEST_PAUSE_S = 600.0  # a longer Retry-After is an error for the caller, not a sleep
HEADER = "x-mbx-used-weight-1m"

logger = logging.getLogger(__name__)


class WeightBudget:
    """The weight of this process alone; share one between all clients of a market, in any number of threads.

    exchange.governor.Governor shares it with every process of a home.
    """

    def __init__(
        self,
        limit_per_minute: int,
        share: float = SHARE,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if limit_per_minute < 1 or not 0 < share <= 1:
            raise ValueError(
                "Expected a limit of at least 1 per minute and a share within (0, 1], "
                f"found {limit_per_minute} and {share}; the exchange's limits are {LIMITS_PER_MINUTE}."
            )
        self.share = share
        self.geo_blocked = False
        """The exchange does not serve this location; set by the first client that is told so."""
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._state = WeightState(limit=limit_per_minute)
        self._ban: tuple[float, Banned] | None = None

    @property
    def used(self) -> int:
        """Weight used in the exchange's minute, at most, requests under way included."""
        with self._shared() as state:
            return state.used

    @property
    def limit_per_minute(self) -> int:
        with self._shared() as state:
            return state.limit

    def learn_limit(self, limit_per_minute: int) -> None:
        """Take the limit that the exchange states."""
        with self._shared() as state:
            state.limit, state.limit_at = limit_per_minute, self._clock()

    def wants_limit(self) -> bool:
        """Whether the limit should be asked for; a budget in memory believes its maker."""
        return False

    def before(self, weight: int) -> WeightClaim:
        """Claim `weight`, after as long a wait as that takes; raises Banned while a ban lasts.

        Hand the claim to `after` with what came of the request.
        """
        until = 0.0
        while not isinstance(found := self._claim(weight, until), WeightClaim):
            wait_s, until = found
            level = logging.INFO if wait_s > 1 else logging.DEBUG
            logger.log(level, "waiting %.1f s for request weight", wait_s)
            self._sleep(wait_s)
        return found

    def at_once(self, weight: int) -> WeightClaim | None:
        """Claim `weight` if that takes no wait."""
        found = self._claim(weight)
        return found if isinstance(found, WeightClaim) else None

    def after(self, claim: WeightClaim, headers: Mapping[str, str]) -> None:
        """Believe the exchange's own count; empty headers mean that no answer came."""
        text = next((text for name, text in headers.items() if name.lower() == HEADER), "")
        with self._shared() as state:
            state.answered(claim.serial, int(text) if text.isdigit() else None, self._clock())

    def pause(self, seconds: float) -> None:
        """Let nobody ask for so long (429 with Retry-After)."""
        with self._shared() as state:
            state.pause(seconds, self._clock())

    def forbid(self, ban: Banned) -> None:
        """Refuse every request until the ban is over: each one would make it longer."""
        with self._shared():
            self._ban = (self._clock() + ban.seconds, ban)

    @contextmanager
    def _shared(self) -> Iterator[WeightState]:
        """The state, for this thread alone."""
        with self._lock:
            yield self._state

    def _claim(self, weight: int, slept_until: float = 0.0) -> WeightClaim | tuple[float, float]:
        """The claim, or how long to wait and until when.

        The clock is read once the state is ours: a time that is older than the state would tell of a clock that
        was set back, and begin a window that ends too early.
        """
        with self._shared() as state:
            now = max(self._clock(), slept_until)
            if self._ban is not None and now < self._ban[0]:
                raise self._ban[1]
            if (wait_s := state.paused_s(now)) > LONGEST_PAUSE_S:
                raise RateLimited(
                    "Expected the exchange to take requests, found that it asked this address to pause; "
                    f"wait {wait_s:.0f} s and run again.",
                    retry_after_s=wait_s,
                )
            found = state.claim(weight, now, share=self.share)
            return found if isinstance(found, WeightClaim) else (found - now, found)
