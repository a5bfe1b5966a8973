"""Faults that a replayed exchange commits on demand, so that a client can be tested against each."""

import random
import threading
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from typing import Literal

from kronos_model.settings import Count, Counted, NotNegative, Seed, Share, checked

__all__ = ["Fault", "FaultKind", "FaultPlan"]

StatusFault = Literal["429", "418", "451", "500", "503", "html403"]
BodyFault = Literal["reset", "truncated", "short", "slow", "drip"]
PageFault = Literal["duplicate", "missing", "unordered", "stale"]
StreamFault = Literal["ws-refuse", "ws-silent", "ws-disconnect", "ws-duplicate", "ws-unclosed", "ws-shutdown"]
FaultKind = Literal[StatusFault, BodyFault, PageFault, StreamFault]


@dataclass(frozen=True, slots=True)
@checked
class Fault:
    """What goes wrong, where and when. Without `on`, `every` and `probability` it hits every request."""

    kind: FaultKind
    """429, 418, 451, 500, 503: that status with Binance's JSON body. html403: the firewall's HTML page.
    reset: the connection is reset (TCP RST) in the middle of the body. truncated: the JSON is cut and
    Content-Length agrees with the cut. short: Content-Length promises more bytes than come. slow: the answer
    waits `delay_s`. drip: half the body comes at once, the rest `delay_s` later. duplicate: a row of the page
    comes twice. missing: a row of the page is left out. unordered: the halves of the page change places.
    stale: the page that was served before comes again.
    Of streams, ws-refuse: the handshake is answered with 503. ws-silent: everything is acknowledged and no
    candle follows. ws-disconnect: the connection drops instead of a message. ws-duplicate: a message comes
    twice. ws-unclosed: the message that closes a candle is lost. ws-shutdown: serverShutdown comes first."""
    path: str = "*"
    """Shell pattern of the paths it hits, e.g. "*/klines" or "/fapi/*"; of stream names such as
    btcusdt@kline_1m where it hits messages (the ws- kinds but ws-refuse and ws-silent)."""
    _: KW_ONLY
    on: tuple[int, ...] = ()
    """Numbers of the matching requests that it hits, counted from 1."""
    every: Counted = 0
    """Hits every n-th matching request; 0 switches this off."""
    probability: Share = 0.0
    """Share of the matching requests that it hits, 0 to 1, drawn from `seed`; 0 switches this off."""
    seed: Seed = 0
    """Seed of `probability`: the same seed hits the same request numbers."""
    times: Count | None = None
    """Most hits in all; none means no end."""
    delay_s: NotNegative = 1.0
    """Seconds that a slow answer waits, or the second half of a dripping one."""
    retry_after_s: Counted = 1
    """Seconds in Retry-After of 429; 418 lasts as long, but at least the 120 s of a first ban."""

    def __post_init__(self) -> None:
        if any(number < 1 for number in self.on):
            raise ValueError(f"on: expected request numbers from 1, found {self.on}; count from 1")

    def hits(self, number: int) -> bool:
        """Whether it hits the n-th matching request (from 1)."""
        if not (self.on or self.every or self.probability):
            return True
        if number in self.on or (self.every and number % self.every == 0):
            return True
        return random.Random(f"{self.seed}:{number}").random() < self.probability


class FaultPlan:
    """Counts the requests each fault matches; the first fault of the list that hits wins."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._lock = threading.Lock()
        self._matched = [0] * len(self.faults)
        self._struck = [0] * len(self.faults)

    def strike(self, path: str) -> Fault | None:
        """The fault that this request meets, if any."""
        chosen: int | None = None
        with self._lock:
            for index, fault in enumerate(self.faults):
                if not fnmatchcase(path, fault.path):
                    continue
                self._matched[index] += 1
                spent = fault.times is not None and self._struck[index] >= fault.times
                if chosen is None and not spent and fault.hits(self._matched[index]):
                    chosen = index
                    self._struck[index] += 1
        return None if chosen is None else self.faults[chosen]
