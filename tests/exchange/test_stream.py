"""The stream of klines: closed candles as the exchange has them, and connections that are kept alive."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from websockets.sync.server import ServerConnection, serve

from exchange.errors import Malformed
from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from exchange.stream import (
    Connected,
    Disconnected,
    Jumped,
    KlineStream,
    KlineUpdate,
    StreamConfig,
    StreamEvent,
    parse_kline,
)
from storage.schema import SeriesKey

MINUTE = 60_000
START = 1_700_006_400_000
SPOT, UM = SeriesKey.parse("spot:BTCUSDT", "1m"), SeriesKey.parse("um:DOGEUSDT", "1m")
MARKET = synthetic_market([SPOT, UM], start_ms=START, count=400, seed=3)
NOW = START + 60 * MINUTE + 10_000
SPEED = 600.0  # a candle takes 0.1 s


@contextmanager
def serving(*faults: Fault, speed: float = SPEED) -> Iterator[ReplayExchange]:
    with ReplayExchange(MARKET, clock=ReplayClock(NOW, speed=speed), faults=faults) as exchange:
        yield exchange


def quick(config: StreamConfig, **others: Any) -> StreamConfig:
    return replace(config, **({"backoff_s": 0.01, "longest_backoff_s": 0.05} | others))


def collect(
    key: SeriesKey, config: StreamConfig, enough: Callable[[list[StreamEvent]], bool]
) -> list[StreamEvent]:
    """Events until there are enough; fails after some seconds."""
    stop, events = threading.Event(), []
    deadline = time.monotonic() + 4
    for event in KlineStream(key.market, [key], config, stop=stop).events():
        events.append(event)
        if enough(events):
            stop.set()
        assert time.monotonic() < deadline, f"after 4 s only {events[-20:]}"
    return events


def closed(events: list[StreamEvent]) -> list[KlineUpdate]:
    return [event for event in events if isinstance(event, KlineUpdate) and event.closed]


def row_of(update: KlineUpdate) -> int:
    return (update.open_ms - START) // MINUTE


def of(kind: type, events: list[StreamEvent]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("key", [SPOT, UM], ids=["spot", "um"])
def test_closed_candles_come_with_all_columns_as_the_exchange_has_them(key: SeriesKey) -> None:
    with serving() as exchange:
        events = collect(key, quick(exchange.stream_config), lambda events: len(closed(events)) == 5)
    frame = pl.concat([update.candle for update in closed(events) if update.candle is not None])
    first = row_of(closed(events)[0])  # the clock runs on until the stream stands
    assert_frame_equal(frame, MARKET[key][first : first + 5], check_exact=True)
    assert isinstance(events[0], Connected)
    assert not of(Jumped, events)


def test_forming_candles_are_no_candles_yet() -> None:
    with serving() as exchange:
        events = collect(UM, quick(exchange.stream_config), lambda events: len(events) == 20)
    forming = [update for update in of(KlineUpdate, events) if not update.closed]
    assert forming
    for update in forming:
        assert update.candle is None
        assert update.event_ms <= update.close_ms
        row = MARKET[UM].row(row_of(update), named=True)
        assert row["low"] <= update.low <= update.close <= update.high <= row["high"]


def test_a_repeated_closing_message_is_dropped() -> None:
    with serving(Fault("ws-duplicate")) as exchange:
        events = collect(UM, quick(exchange.stream_config), lambda events: len(closed(events)) == 5)
    rows = [row_of(update) for update in closed(events)]
    assert rows == [rows[0] + n for n in range(5)]


def test_a_lost_closing_message_is_told_before_the_next_candle() -> None:
    with serving(Fault("ws-unclosed", on=(2,))) as exchange:
        events = collect(UM, quick(exchange.stream_config), lambda events: len(closed(events)) == 2)
    (jump,) = of(Jumped, events)
    following = events[events.index(jump) + 1]
    assert isinstance(following, KlineUpdate)
    rows = [row_of(update) for update in closed(events)]
    assert rows[1] == rows[0] + 2 == row_of(following)


def test_a_stream_that_acknowledges_and_stays_silent_is_replaced() -> None:
    with serving(Fault("ws-silent", times=2)) as exchange:
        config = quick(exchange.stream_config, silence_s=0.2)
        events = collect(UM, config, lambda events: len(closed(events)) == 1)
    lost = of(Disconnected, events)
    assert [event.fruitless for event in lost] == [1, 2]
    assert lost[0].reason == "connected, but silent for 0.2 s"
    assert len(of(Connected, events)) == 3


def test_a_dropped_connection_is_taken_up_again_and_told() -> None:
    with serving(Fault("ws-disconnect", every=7)) as exchange:
        events = collect(UM, quick(exchange.stream_config), lambda events: len(of(Connected, events)) == 4)
    assert [event.fruitless for event in of(Disconnected, events)] == [0, 0, 0]
    assert of(Disconnected, events)[0].reason == "the exchange ended the connection"


def test_a_connection_is_replaced_before_the_exchange_cuts_it() -> None:
    with serving() as exchange:
        config = quick(exchange.stream_config, lifetime_s=0.2)
        events = collect(UM, config, lambda events: len(of(Connected, events)) == 3)
    assert {event.reason for event in of(Disconnected, events)} == {"replaced before its 24 hours are over"}
    assert StreamConfig().lifetime_s < 24 * 3600


def test_a_server_that_announces_its_end_is_left() -> None:
    with serving(Fault("ws-shutdown", on=(3,))) as exchange:
        events = collect(UM, quick(exchange.stream_config), lambda events: len(of(Connected, events)) == 2)
    assert of(Disconnected, events)[0].reason == "the exchange restarts this server"


@pytest.mark.parametrize("refused", ["handshake", "connection"])
def test_refused_connections_are_counted(refused: str) -> None:
    with serving(Fault("ws-refuse")) as exchange:
        config = quick(exchange.stream_config)
        if refused == "connection":
            exchange.close()
        events = collect(UM, config, lambda events: len(events) == 3)
    assert [event.fruitless for event in events if isinstance(event, Disconnected)] == [1, 2, 3]
    word = "503" if refused == "handshake" else "refused"
    assert all(word in event.reason for event in of(Disconnected, events))


def test_waits_double_up_to_the_longest_with_jitter_below() -> None:
    stream = KlineStream("um", [UM], StreamConfig(backoff_s=1, longest_backoff_s=8))
    waits = []
    for stream._fruitless in range(7):
        waits.append({round(stream._backoff_s(), 6) for _ in range(50)})
    assert waits[0] == {0.0}
    for wait, longest in zip(waits[1:], (1, 2, 4, 8, 8, 8), strict=True):
        assert len(wait) > 10
        assert longest / 2 <= min(wait) < max(wait) <= longest


def message(open_ms: int, *, event: int = 0, x: bool = False, **others: Any) -> dict[str, Any]:
    """An event as of Binance's documentation."""
    k = {"t": open_ms, "T": open_ms + MINUTE - 1, "s": "DOGEUSDT", "i": "1m", "f": 1, "L": 9, "o": "0.10"}
    k |= {"c": "0.20", "h": "0.30", "l": "0.05", "v": "1000", "n": 9, "x": x, "q": "150.5", "V": "500"}
    k |= {"Q": "75.25", "B": "123456"}
    return {"e": "kline", "E": open_ms + event, "s": "DOGEUSDT", "st": 1, "k": k | others}


@contextmanager
def scripted(*messages: object) -> Iterator[tuple[StreamConfig, list[Any]]]:
    """A server that sends these messages and then waits; it pings every 50 ms and expects a pong in 200."""
    seen: list[Any] = []

    def handle(websocket: ServerConnection) -> None:
        seen.append(websocket.request)
        for one in messages:
            websocket.send(one if isinstance(one, str) else json.dumps(one))
        for text in websocket:
            seen.append(text)

    with serve(handle, "127.0.0.1", 0, ping_interval=0.05, ping_timeout=0.2) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        yield quick(StreamConfig(spot_stream_url=address, um_stream_url=f"{address}/market")), seen
        server.shutdown()
        thread.join()


def updates(events: list[StreamEvent]) -> list[tuple[int, bool]]:
    return [(row_of(one), one.closed) for one in of(KlineUpdate, events)]


def test_only_candles_that_were_asked_for_are_read() -> None:
    coin_margined = message(START) | {"st": 2}
    others = [message(START, s="ADAUSDT"), message(START, i="5m"), {"e": "trade"}, {"result": None, "id": 1}]
    wrapped = {"stream": "dogeusdt@kline_1m", "data": message(START + MINUTE)}
    with scripted("{", "[]", coin_margined, *others, {"e": "kline", "k": 5}, wrapped) as (config, _):
        events = collect(UM, config, lambda events: len(of(KlineUpdate, events)) == 1)
    assert updates(events) == [(1, False)]
    assert len(events) == 2


def test_outdated_messages_are_dropped_but_a_late_closing_one_counts() -> None:
    sent = [
        message(START + MINUTE, x=False),
        message(START, x=False),  # older
        message(START, x=True),  # the late end of the candle before
        message(START + MINUTE, x=True),
        message(START + MINUTE, x=False),  # closed already
        message(START + MINUTE, x=True),  # again
        message(START + 2 * MINUTE, x=True),
        message(START + 5 * MINUTE, x=False),  # three candles are missing
    ]
    with scripted(*sent) as (config, _):
        events = collect(UM, config, lambda events: len(of(KlineUpdate, events)) == 5)
    assert updates(events) == [(1, False), (0, True), (1, True), (2, True), (5, False)]
    assert [type(event) for event in events].index(Jumped) == len(events) - 2


def test_a_closing_message_that_is_no_candle_is_told_as_a_jump() -> None:
    with scripted(message(START, x=True, h="0.01"), message(START + MINUTE, x=True)) as (config, _):
        events = collect(UM, config, lambda events: len(closed(events)) == 1)
    assert updates(events) == [(1, True)]
    assert of(Jumped, events) == [Jumped(UM)]


@pytest.mark.parametrize("broken", [{"o": "much"}, {"t": START + 1}, {"h": "0.01"}, {"v": "-1"}, {"n": None}])
def test_a_broken_closing_message_is_malformed_and_quoted(broken: dict[str, Any]) -> None:
    event = message(START, x=True, **broken)
    if "t" in broken:  # off the grid: no row for the lake
        update = parse_kline(UM, event)
        assert update.candle is not None
        assert update.candle.is_empty()
    else:
        with pytest.raises(Malformed, match="Expected a candle of um:DOGEUSDT:1m on the stream, found"):
            parse_kline(UM, event)


def test_the_connection_offers_no_compression_and_answers_pings() -> None:
    stop = threading.Event()
    with scripted(message(START)) as (config, seen):
        threading.Timer(0.6, stop.set).start()
        events = list(KlineStream("um", [UM], config, stop=stop).events())
    assert [type(event) for event in events] == [Connected, KlineUpdate]  # still the first connection
    (request,) = seen
    assert "Sec-WebSocket-Extensions" not in request.headers
    assert request.path == "/market/stream?streams=dogeusdt@kline_1m"


def test_one_connection_carries_several_series_and_any_script() -> None:
    keys = [SeriesKey.parse("spot:币安人生USDT", "1m"), SeriesKey.parse("spot:BTCUSDT", "1M")]
    url = KlineStream("spot", keys).url
    assert url == (
        "wss://data-stream.binance.vision/stream?streams="
        "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@kline_1m/btcusdt@kline_1M"
    )


def test_a_stream_takes_one_market_only() -> None:
    with pytest.raises(ValueError, match="Expected 1 to 200 series of market spot, found 1: um:DOGEUSDT:1m"):
        KlineStream("spot", [UM])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("um_stream_url", "https://fstream.binance.com"),
        ("silence_s", 0),
        ("lifetime_s", -1.0),
        ("patience", 0),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{setting}: expected .*, found '?{value}"):
        StreamConfig(**{setting: value})


def test_a_proxy_that_cannot_be_used_counts_as_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    events = collect(UM, quick(StreamConfig()), lambda events: len(events) == 2)
    assert [event.fruitless for event in of(Disconnected, events)] == [1, 2]
    assert "gopher" in of(Disconnected, events)[0].reason
