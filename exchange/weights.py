"""What is known of the request weight that one IP address has used, and what may be asked next.

Binance counts weight per address and minute and says the count with every answer (X-MBX-USED-WEIGHT-1M), so
that other programs behind the same address are seen too. The count falls back to zero when the exchange's
minute turns. The local clock is not asked when that is; it is inferred, in three steps:

- Any 60 seconds hold one turn. A window first seen at some moment is over 60 seconds later for certain, and
  the turn after that one comes within another 60 seconds.
- Within one window the count never falls. An answer that says less than what was known when its request was
  made comes out of a newer window, whatever the order in which answers arrive.
- While requests are under way the true count may be higher than the last one said by their weight, not more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["WINDOW_S", "WeightClaim", "WeightState"]

WINDOW_S = 60.0
RECHECK_S = 0.1  # while only requests under way keep another one from being made
SET_BACK_S = 1.0  # a clock that was set back further than this tells nothing about the turn either
STALE_S = 3600.0  # clocks drift: a turn seen so long ago says nothing about the next


@dataclass(kw_only=True, slots=True)
class WeightClaim:
    """A request whose answer has not been counted yet."""

    serial: int
    weight: int
    at: float
    window: int
    floor: int
    """The count when the request was made: an answer out of the same window says more."""
    lost: int | None = None
    """No count that tells came back: the first serial after that. The answer to that one includes it."""


@dataclass(kw_only=True, slots=True)
class WeightState:
    """Times are seconds of one clock, which all that share the state must share."""

    limit: int
    """Weight per minute."""
    limit_at: float | None = None
    """When the exchange said so."""
    seen: int = 0
    """The exchange's latest count of this window."""
    window: int = 0
    """Number of this window, which differs from its neighbours'."""
    window_end: float | None = None
    """The window is over then for certain, perhaps earlier."""
    doubt: int | None = None
    """The count of the window before, as long as no answer has shown that it is over."""
    serial: int = 0
    asked: list[WeightClaim] = field(default_factory=list)
    paused_at: float = 0.0
    """When the exchange asked for the pause."""
    paused_until: float = 0.0

    @property
    def used(self) -> int:
        """Weight used in this window, at most."""
        return self.seen + sum(one.weight for one in self.asked)

    def pause(self, seconds: float, now: float) -> None:
        """No request for so long; a longer pause that is under way stays."""
        if seconds > self.paused_s(now):
            self.paused_at, self.paused_until = now, now + seconds

    def paused_s(self, now: float) -> float:
        """How long the pause still lasts.

        One that begins in the future was asked for before the clock was set back, and begins anew: it is never cut
        short, and never lasts for as long as the clock was wrong.
        """
        if now < self.paused_at - SET_BACK_S:
            self.paused_at, self.paused_until = now, now + self.paused_until - self.paused_at
        return max(0.0, self.paused_until - now)

    def claim(self, weight: int, now: float, *, share: float) -> WeightClaim | float:
        """The request, which may be made now; or when to try again."""
        if self.paused_s(now) > 0:
            return self.paused_until
        self._let_time_pass(now)
        assert self.window_end is not None
        most = max(self._allowed(now, share), weight)
        if self.used + weight > most:
            return min(moment for moment in self._changes(weight, now, most, share) if moment > now)
        self.serial += 1
        self.asked.append(
            made := WeightClaim(
                serial=self.serial, weight=weight, at=now, window=self.window, floor=self.seen
            )
        )
        return made

    def answered(self, serial: int, count: int | None, now: float) -> None:
        """Settle a request by the count that came with its answer, if one did."""
        made = next((one for one in self.asked if one.serial == serial), None)
        if made is None:  # so late that its window is over
            return
        fell = count is not None and count < made.floor + made.weight
        if count is None or not (fell or made.window == self.window):  # none, or perhaps the old window's
            made.lost = self.serial + 1
            return
        self.asked.remove(made)
        if made.window == self.window:
            self._believe(count, now, fell=fell)
            self.asked = [one for one in self.asked if one.lost is None or one.lost > serial]
        else:
            self.seen, self.doubt = max(self.seen, count), None

    def _believe(self, count: int, now: float, *, fell: bool) -> None:
        """Take the count of an answer to a request of this window."""
        if fell:
            self.window += 1
            self.window_end, self.seen = now + WINDOW_S, count
        elif self.doubt is not None and count > self.doubt:  # the window that should be over is not
            self.window_end = now + WINDOW_S
        self.seen, self.doubt = max(self.seen, count), None

    def _let_time_pass(self, now: float) -> None:
        """Begin the window of `now`; the requests under way may be counted in it, old ones not."""
        if self.window_end is None or not -WINDOW_S - SET_BACK_S < now - self.window_end < STALE_S:
            self.window_end, self.doubt = now + WINDOW_S, None
            self.window, self.seen = self.window + 1, 0
        elif now >= self.window_end:
            turns = 1 + int((now - self.window_end) // WINDOW_S)
            self.window_end += turns * WINDOW_S
            self.doubt = self.seen if turns == 1 and self.seen else None
            self.window, self.seen = self.window + 1, 0
        self.asked = [one for one in self.asked if abs(now - one.at) < WINDOW_S]

    def _allowed(self, now: float, share: float) -> float:
        """Weight that may be used by `now`: half the share at once, the other half spread over the window. So
        its end is noticed when it comes, and what other programs use meanwhile is made room for."""
        assert self.window_end is not None
        return self.limit * share * (1 - max(0.0, self.window_end - now) / WINDOW_S / 2)

    def _changes(self, weight: int, now: float, most: float, share: float) -> Iterator[float]:
        """When a request that does not fit now should be tried again; some of these times may be over."""
        assert self.window_end is not None
        yield self.window_end
        yield from (one.at + WINDOW_S for one in self.asked)
        waiting = sum(one.weight for one in self.asked if one.lost is None)
        if self.used - waiting + weight <= most:
            yield now + RECHECK_S
        if self.used + weight <= self.limit * share:
            missing = (self.used + weight - most) / (self.limit * share / 2) * WINDOW_S
            yield min(self.window_end, now + max(missing, 0.001))
