"""Between the threads that listen and the one that stores: nothing final is lost, and little is kept."""

import threading
from collections.abc import Iterator

import polars as pl
import pytest

from exchange.candle_queue import CandleQueue
from exchange.stream import Jumped, KlineUpdate, StreamEvent
from storage.schema import SeriesKey

KEY, OTHER = SeriesKey.parse("um:DOGEUSDT", "1m"), SeriesKey.parse("um:BTCUSDT", "1m")


def update(open_ms: int, *, key: SeriesKey = KEY, close: float = 1.0, closed: bool = False) -> KlineUpdate:
    prices = {"open": 1.0, "high": 2.0, "low": 0.5, "close": close}
    candle = pl.DataFrame({"close": [close]}) if closed else None
    return KlineUpdate(
        key=key,
        event_ms=0,
        open_ms=open_ms,
        close_ms=0,
        **prices,
        volume=1,
        quote_volume=1,
        trades=1,
        candle=candle,
    )


def test_of_a_forming_candle_only_the_latest_state_waits() -> None:
    inbox = CandleQueue()
    for close in (1.1, 1.2, 1.3):
        inbox.put(update(60_000, close=close))
    inbox.put(update(60_000, key=OTHER))
    assert inbox.take(timeout=0) == [update(60_000, close=1.3), update(60_000, key=OTHER)]
    assert inbox.take(timeout=0) == []


def test_a_closed_candle_replaces_its_forming_one_and_keeps_its_place() -> None:
    inbox = CandleQueue()
    events: list[StreamEvent] = [update(0, closed=True), Jumped(KEY), update(120_000, closed=True)]
    for event in (update(0), events[0], events[1], update(120_000), events[2], update(180_000)):
        inbox.put(event)
    assert inbox.take(timeout=0) == [*events, update(180_000)]


def test_what_a_stream_raises_reaches_who_takes() -> None:
    def events() -> Iterator[StreamEvent]:
        yield update(0)
        raise ValueError("a defect")

    inbox = CandleQueue()
    thread = threading.Thread(target=inbox.fill, args=[events])
    thread.start()
    thread.join()
    with pytest.raises(ValueError, match="a defect"):
        inbox.take(timeout=1)
