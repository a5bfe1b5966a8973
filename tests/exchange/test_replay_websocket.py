"""The replay exchange streams as Binance does: paths, payloads, subscriptions, and what can go wrong."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from binance import AsyncClient, BinanceSocketManager
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from storage.schema import SeriesKey

MINUTE = 60_000
START = 1_700_006_400_000
SPOT, UM = SeriesKey.parse("spot:BTCUSDT", "1m"), SeriesKey.parse("um:DOGEUSDT", "1m")
MARKET = synthetic_market([SPOT, UM], start_ms=START, count=120, seed=3)
ROW = 60  # the candle that is forming when a test begins
NOW = START + ROW * MINUTE + 10_000


@pytest.fixture
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange(MARKET, clock=ReplayClock(NOW)) as running:
        yield running


def open_stream(exchange: ReplayExchange, path: str) -> ClientConnection:
    return connect(exchange.url.replace("http", "ws") + path, compression=None, close_timeout=1)


def receive(websocket: ClientConnection, count: int = 1) -> list[dict[str, Any]]:
    return [json.loads(websocket.recv(timeout=2)) for _ in range(count)]


def silent(websocket: ClientConnection) -> bool:
    try:
        websocket.recv(timeout=0.15)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize(
    ("key", "path"),
    [(SPOT, "/ws/btcusdt@kline_1m"), (UM, "/market/ws/dogeusdt@kline_1m")],
    ids=["spot", "um"],
)
def test_a_candle_forms_and_then_closes_as_the_data_has_it(
    exchange: ReplayExchange, key: SeriesKey, path: str
) -> None:
    row = MARKET[key].row(ROW, named=True)
    with open_stream(exchange, path) as websocket:
        (forming,) = receive(websocket)
        exchange.clock.advance(MINUTE)
        closed, following = receive(websocket, 2)
    assert (forming["e"], forming["s"], forming["E"]) == ("kline", key.symbol, NOW)
    assert forming.get("st") == (1 if key.market == "um" else None)
    assert (forming["k"]["t"], forming["k"]["x"]) == (START + ROW * MINUTE, False)
    assert 0 < float(forming["k"]["v"]) < row["volume"]
    k = closed["k"]
    assert (k["t"], k["T"], k["x"]) == (START + ROW * MINUTE, START + (ROW + 1) * MINUTE - 1, True)
    names = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "q": "quote_volume"}
    names |= {"V": "taker_buy_volume", "Q": "taker_buy_quote_volume"}
    assert {name: float(k[short]) for short, name in names.items()} == {n: row[n] for n in names.values()}
    assert (k["n"], k["i"], k["s"]) == (row["trades"], "1m", key.symbol)
    assert (following["k"]["t"], following["k"]["x"]) == (START + (ROW + 1) * MINUTE, False)


def test_while_the_clock_stands_still_nothing_more_is_sent(exchange: ReplayExchange) -> None:
    with open_stream(exchange, "/ws/btcusdt@kline_1m") as websocket:
        receive(websocket)
        assert silent(websocket)


def test_a_combined_stream_wraps_each_event_and_names_its_stream(exchange: ReplayExchange) -> None:
    path = "/stream?streams=btcusdt@kline_1m/btcusdt@kline_5m"
    with open_stream(exchange, path) as websocket:
        events = receive(websocket, 2)
    assert [event["stream"] for event in events] == ["btcusdt@kline_1m", "btcusdt@kline_5m"]
    assert [event["data"]["k"]["i"] for event in events] == ["1m", "5m"]


def test_subscriptions_are_acknowledged_listed_and_ended(exchange: ReplayExchange) -> None:
    with open_stream(exchange, "/ws") as websocket:
        assert silent(websocket)
        websocket.send(json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 7}))
        answer, event = receive(websocket, 2)
        assert answer == {"result": None, "id": 7}
        assert event["k"]["s"] == "BTCUSDT"
        websocket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": 8}))
        assert receive(websocket) == [{"result": ["btcusdt@kline_1m"], "id": 8}]
        websocket.send(json.dumps({"method": "UNSUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 9}))
        assert receive(websocket) == [{"result": None, "id": 9}]
        exchange.clock.advance(MINUTE)
        assert silent(websocket)
        websocket.send(json.dumps({"method": "NONSENSE", "id": 10}))
        assert receive(websocket)[0]["code"] == 2
        websocket.send("no json")
        assert receive(websocket)[0]["code"] == 3


@pytest.mark.parametrize(
    "name", ["nopeusdt@kline_1m", "BTCUSDT@kline_1m", "btcusdt@kline_9m", "btcusdt@trade"]
)
def test_a_stream_that_does_not_exist_is_acknowledged_and_stays_silent(
    exchange: ReplayExchange, name: str
) -> None:
    with open_stream(exchange, f"/ws/{name}") as websocket:
        exchange.clock.advance(MINUTE)
        assert silent(websocket)


def test_other_paths_are_no_streams(exchange: ReplayExchange) -> None:
    with pytest.raises(InvalidStatus, match="404"):
        open_stream(exchange, "/market/nothing")


def test_handshakes_are_in_the_log(exchange: ReplayExchange) -> None:
    with open_stream(exchange, "/market/stream?streams=dogeusdt@kline_1m") as websocket:
        receive(websocket)
    (request,) = exchange.requests
    assert (request.path, request.status, request.weight) == ("/market/stream", 101, 0)
    assert request.params == {"streams": "dogeusdt@kline_1m"}


def test_faults_strike_handshakes_messages_and_closings_each_by_its_own_count(
    exchange: ReplayExchange,
) -> None:
    exchange.faults = [Fault("ws-refuse", on=(1,)), Fault("ws-silent", on=(2,))]
    with pytest.raises(InvalidStatus, match="503"):
        open_stream(exchange, "/ws/btcusdt@kline_1m")
    with open_stream(exchange, "/ws") as websocket:
        websocket.send(json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 1}))
        assert receive(websocket) == [{"result": None, "id": 1}]
        assert silent(websocket)
    exchange.faults = [
        Fault("ws-duplicate", on=(1,)),
        Fault("ws-unclosed", on=(1,)),
        Fault("ws-disconnect", on=(4,)),
    ]
    with open_stream(exchange, "/ws/btcusdt@kline_1m") as websocket:
        first, again = receive(websocket, 2)
        assert first == again
        exchange.clock.advance(MINUTE)
        (following,) = receive(websocket)  # not the closing message
        assert (following["k"]["t"], following["k"]["x"]) == (START + (ROW + 1) * MINUTE, False)
        exchange.clock.advance(MINUTE)
        assert receive(websocket)[0]["k"]["x"] is True
        with pytest.raises(ConnectionClosed):
            receive(websocket)


def test_closing_the_exchange_ends_its_streams() -> None:
    with ReplayExchange(MARKET, clock=ReplayClock(NOW)) as exchange:
        websocket = open_stream(exchange, "/ws/btcusdt@kline_1m")
        receive(websocket)
    with websocket, pytest.raises(ConnectionClosed):
        websocket.recv(timeout=2)


def test_an_unmodified_client_reads_both_markets(monkeypatch: pytest.MonkeyPatch) -> None:
    with ReplayExchange(MARKET, clock=ReplayClock(NOW, speed=60)) as exchange:
        events = read_with_python_binance(exchange, monkeypatch)
    assert [(event["e"], event["k"]["s"]) for event in events] == [
        ("kline", "BTCUSDT"),
        ("kline", "DOGEUSDT"),
    ]


def read_with_python_binance(
    exchange: ReplayExchange, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Only the two addresses differ from what its users have."""
    address = exchange.url.replace("http", "ws") + "/"
    monkeypatch.setattr(BinanceSocketManager, "STREAM_URL", address)
    monkeypatch.setattr(BinanceSocketManager, "FSTREAM_URL", address)

    async def read() -> list[dict[str, Any]]:
        manager = BinanceSocketManager(AsyncClient())
        async with manager.kline_socket("BTCUSDT", "1m") as spot:
            event = await asyncio.wait_for(spot.recv(), 2)
        async with manager.futures_multiplex_socket(["dogeusdt@kline_1m"]) as um:
            wrapped = await asyncio.wait_for(um.recv(), 2)
        await manager._client.close_connection()
        return [event, wrapped["data"]]

    return asyncio.run(read())
