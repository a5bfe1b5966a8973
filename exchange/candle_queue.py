"""What streams bring, until the one thread that stores has time for it."""

import threading
from collections.abc import Callable, Iterable

from exchange.stream import KlineUpdate, StreamEvent
from storage.schema import SeriesKey

__all__ = ["CandleQueue"]


class CandleQueue:
    """Events in their order; of a forming candle only the latest state, so that a backlog stays small."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[StreamEvent] = []
        self._forming: dict[SeriesKey, KlineUpdate] = {}
        self._failure: Exception | None = None

    def fill(self, events: Callable[[], Iterable[StreamEvent]]) -> None:
        """Put every event of a stream; a thread's target. What it raises, `take` raises."""
        try:
            for event in events():
                self.put(event)
        except Exception as error:  # noqa: BLE001  # the edge of a thread; raised again in the other
            with self._changed:
                self._failure = error
                self._changed.notify()

    def put(self, event: StreamEvent) -> None:
        with self._changed:
            if isinstance(event, KlineUpdate):
                self._forming.pop(event.key, None)
            if isinstance(event, KlineUpdate) and not event.closed:
                self._forming[event.key] = event
            else:
                self._events.append(event)
            self._changed.notify()

    def take(self, *, timeout: float) -> list[StreamEvent]:
        """All there is, after a wait of at most `timeout` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._forming or self._failure, timeout)
            if self._failure is not None:
                raise self._failure
            taken = [*self._events, *self._forming.values()]
            self._events, self._forming = [], {}
            return taken
