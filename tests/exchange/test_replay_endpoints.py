"""Parameters, errors, weights and the server itself: what a client of Binance runs into besides candles."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
import psutil
import pytest
import requests

from exchange.errors import ExchangeError
from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from exchange.replay.penalties import FIRST_BAN_S, PATIENCE
from storage.schema import SeriesKey

HOUR = 3_600_000
START = 1_717_200_000_000
KEYS = [SeriesKey.parse(name, "1h") for name in ("spot:BTCUSDT", "spot:ETHBTC", "um:DOGEUSDT")]
NUMBERS = "legal range is '^[0-9]{1,20}$'."


@pytest.fixture(scope="module")
def market() -> dict[SeriesKey, pl.DataFrame]:
    return synthetic_market(KEYS, start_ms=START, count=100, seed=5)


@pytest.fixture(scope="module")
def exchange(market: dict[SeriesKey, pl.DataFrame]) -> Iterator[ReplayExchange]:
    with ReplayExchange(market, clock=ReplayClock(START + 60 * HOUR)) as running:
        yield running


def get(exchange: ReplayExchange, target: str) -> Any:
    answer = requests.get(exchange.url + target, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("/api/v3/klines?symbol=NOPEUSDT&interval=1h", -1121, "Invalid symbol."),
        ("/api/v3/klines?symbol=DOGEUSDT&interval=1h", -1121, "Invalid symbol."),  # a future, not spot
        ("/api/v3/klines?symbol=BTCUSDT&interval=1H", -1120, "Invalid interval."),
        ("/api/v3/klines?symbol=BTCUSDT&interval=7m", -1120, "Invalid interval."),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1s", -1120, "Invalid interval."),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1h", -1121, "Invalid symbol."),
        (
            "/api/v3/klines?interval=1h",
            -1102,
            "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.",
        ),
        (
            "/fapi/v1/klines?symbol=DOGEUSDT",
            -1102,
            "Mandatory parameter 'interval' was not sent, was empty/null, or malformed.",
        ),
        ("/api/v3/klines?symbol=&interval=1h", -1105, "Parameter 'symbol' was empty."),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=", -1105, "Parameter 'limit' was empty."),
        (
            "/api/v3/klines?symbol=btcusdt&interval=1h",
            -1100,
            r"Illegal characters found in parameter 'symbol'; legal range is '^[\w\-._&&[^a-z]]{1,50}$'.",
        ),
        (
            "/api/v3/klines?symbol=BTCUSDT&interval=1h&startTime=-1",
            -1100,
            f"Illegal characters found in parameter 'startTime'; {NUMBERS}",
        ),
        (
            "/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=1.5",
            -1100,
            f"Illegal characters found in parameter 'limit'; {NUMBERS}",
        ),
        (
            "/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=0",
            -1102,
            "Mandatory parameter 'limit' was not sent, was empty/null, or malformed.",
        ),
        (
            "/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=1501",
            -1130,
            "Data sent for parameter 'limit' is not valid.",
        ),
        (
            "/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&startTime=5&endTime=4",
            -1023,
            "Start time is greater than end time.",
        ),
        (
            "/api/v3/klines?symbol=BTCUSDT&interval=1h&foo=1",
            -1104,
            "Not all sent parameters were read; read '2' parameter(s) but was sent '3'.",
        ),
        (
            "/api/v3/klines?symbol=BTCUSDT&symbol=BTCUSDT&interval=1h",
            -1101,
            "Duplicate values for a parameter detected.",
        ),
        ("/api/v3/ping?foo=1", -1101, "Too many parameters; expected '0' and received '1'."),
        ("/api/v3/exchangeInfo?symbol=NOPE", -1121, "Invalid symbol."),
        ("/fapi/v1/ticker/24hr?symbol=NOPE", -1121, "Invalid symbol."),
    ],
)
def test_a_bad_request_gets_binances_code_and_words(
    exchange: ReplayExchange, target: str, code: int, message: str
) -> None:
    answer = requests.get(exchange.url + target, timeout=10)
    assert answer.status_code == 400
    assert answer.json() == {"code": code, "msg": message}
    assert "X-MBX-USED-WEIGHT-1M" in answer.headers


def test_an_unknown_path_is_404(exchange: ReplayExchange) -> None:
    assert requests.get(exchange.url + "/api/v1/klines?symbol=BTCUSDT", timeout=10).status_code == 404
    assert requests.get(exchange.url + "/", timeout=10).status_code == 404


def test_time_is_the_clocks(exchange: ReplayExchange) -> None:
    for prefix in ("/api/v3", "/fapi/v1"):
        assert get(exchange, f"{prefix}/ping") == {}
        assert get(exchange, f"{prefix}/time") == {"serverTime": START + 60 * HOUR}


def test_spot_exchange_information_filters_by_symbol(exchange: ReplayExchange) -> None:
    everything = get(exchange, "/api/v3/exchangeInfo")
    assert [symbol["symbol"] for symbol in everything["symbols"]] == ["BTCUSDT", "ETHBTC"]
    assert {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": 6000,
    } in everything["rateLimits"]
    (one,) = get(exchange, "/api/v3/exchangeInfo?symbol=ETHBTC")["symbols"]
    assert (one["baseAsset"], one["quoteAsset"], one["status"]) == ("ETH", "BTC", "TRADING")
    filters = {entry["filterType"]: entry for entry in one["filters"]}
    assert float(filters["PRICE_FILTER"]["tickSize"]) > 0
    assert float(filters["LOT_SIZE"]["stepSize"]) == 0.001
    both = json.dumps(["BTCUSDT", "ETHBTC"], separators=(",", ":"))
    assert len(get(exchange, f"/api/v3/exchangeInfo?symbols={both}")["symbols"]) == 2


def test_futures_exchange_information_ignores_the_symbol_as_binance_does(exchange: ReplayExchange) -> None:
    (one,) = get(exchange, "/fapi/v1/exchangeInfo?symbol=NOPE")["symbols"]
    assert (one["symbol"], one["contractType"], one["onboardDate"]) == ("DOGEUSDT", "PERPETUAL", START)
    assert one["pricePrecision"] == 7


def test_the_24h_ticker_sums_the_last_day(
    exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame]
) -> None:
    for path, key in (("/api/v3", KEYS[0]), ("/fapi/v1", KEYS[2])):
        day = market[key][37:60]  # opened within 24 h before hour 60, without the candle that opens now
        found = get(exchange, f"{path}/ticker/24hr?symbol={key.symbol}")
        assert float(found["highPrice"]) == max(day["high"].max(), market[key]["open"][60])
        assert float(found["lowPrice"]) == min(day["low"].min(), market[key]["open"][60])
        assert float(found["openPrice"]) == day["open"][0]
        assert float(found["volume"]) == pytest.approx(day["volume"].sum())
        assert found["count"] == day["trades"].sum()
    assert [one["symbol"] for one in get(exchange, "/api/v3/ticker/24hr")] == ["BTCUSDT", "ETHBTC"]


@pytest.mark.parametrize(
    ("target", "weight"),
    [
        ("/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=1", 2),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=1000", 2),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=99", 1),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=100", 2),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=499", 2),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h", 5),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=1000", 5),
        ("/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=1001", 10),
        ("/api/v3/exchangeInfo", 20),
        ("/fapi/v1/exchangeInfo", 1),
        ("/api/v3/ping", 1),
        ("/api/v3/ticker/24hr?symbol=BTCUSDT", 2),
        ("/api/v3/ticker/24hr", 80),
        ("/fapi/v1/ticker/24hr", 40),
    ],
)
def test_weights_follow_binances_tables(
    market: dict[SeriesKey, pl.DataFrame], target: str, weight: int
) -> None:
    with ReplayExchange(market, clock=ReplayClock(START, wall=lambda: 0.0)) as exchange:
        for used in (weight, 2 * weight):
            answer = requests.get(exchange.url + target, timeout=10)
            assert answer.headers["X-MBX-USED-WEIGHT-1M"] == str(used)
        assert [request.weight for request in exchange.requests] == [weight, weight]


def test_too_much_weight_is_429_then_418_and_ends(market: dict[SeriesKey, pl.DataFrame]) -> None:
    clock = ReplayClock(START, wall=lambda: 12.0)  # 48 s before the minute ends
    with ReplayExchange(market, clock=clock, weight_limits={"spot": 3}) as exchange:
        target, session = exchange.url + "/api/v3/ping", requests.Session()
        statuses = [session.get(target, timeout=10).status_code for _ in range(3)]
        assert statuses == [200, 200, 200]
        refused = [session.get(target, timeout=10) for _ in range(PATIENCE)]
        assert {answer.status_code for answer in refused} == {429}
        assert refused[0].json()["code"] == -1003
        assert 48 <= int(refused[0].headers["Retry-After"]) <= 49
        assert session.get(exchange.url + "/fapi/v1/ping", timeout=10).status_code == 200
        banned = session.get(target, timeout=10)
        assert banned.status_code == 418
        assert banned.headers["Retry-After"] == str(FIRST_BAN_S)
        assert f"IP banned until {clock.now_ms + FIRST_BAN_S * 1000}" in banned.json()["msg"]
        clock.advance(FIRST_BAN_S * 1000 - 1)
        assert session.get(target, timeout=10).status_code == 418
        clock.advance(1)
        assert session.get(target, timeout=10).status_code == 200


def test_a_client_that_waits_for_the_next_minute_is_served(market: dict[SeriesKey, pl.DataFrame]) -> None:
    clock = ReplayClock(START, wall=lambda: 0.0)
    with ReplayExchange(market, clock=clock, weight_limits={"um": 2}) as exchange:
        target = exchange.url + "/fapi/v1/ping"
        assert [requests.get(target, timeout=10).status_code for _ in range(3)] == [200, 200, 429]
        clock.advance(60_000)
        answer = requests.get(target, timeout=10)
        assert (answer.status_code, answer.headers["X-MBX-USED-WEIGHT-1M"]) == (200, "1")


def test_the_clock_stands_still_steps_and_runs() -> None:
    wall = [100.0]
    frozen, fast = ReplayClock(5000, wall=lambda: wall[0]), ReplayClock(5000, speed=60, wall=lambda: wall[0])
    wall[0] += 2.0
    assert (frozen.now_ms, fast.now_ms) == (5000, 125_000)
    frozen.advance(250)
    fast.set(0)
    wall[0] += 1.0
    assert (frozen.now_ms, fast.now_ms) == (5250, 60_000)
    assert (frozen.limits_ms, fast.limits_ms) == (103_250, 103_000)  # real time and forward steps, no speed
    with pytest.raises(ValueError, match="speed of 0"):
        ReplayClock(0, speed=-1)


def test_the_request_log_tells_what_was_asked(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with ReplayExchange(market, clock=ReplayClock(START + 60 * HOUR)) as exchange:
        get(exchange, "/fapi/v1/klines?symbol=DOGEUSDT&interval=1h&limit=7")
        (request,) = exchange.requests
        assert (request.method, request.path, request.status) == ("GET", "/fapi/v1/klines", 200)
        assert request.params == {"symbol": "DOGEUSDT", "interval": "1h", "limit": "7"}
        assert (request.weight, request.rows, request.fault) == (1, 7, None)
        exchange.forget_requests()
        assert exchange.requests == []


def test_many_clients_at_once_get_their_own_answers(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with ReplayExchange(market, clock=ReplayClock(START + 100 * HOUR)) as exchange:

        def ask(worker: int) -> bool:
            session = requests.Session()
            for number in range(15):
                start = START + ((worker * 15 + number) % 90) * HOUR
                query = f"?symbol=BTCUSDT&interval=1h&limit=3&startTime={start}"
                rows = session.get(exchange.url + "/api/v3/klines" + query, timeout=10).json()
                if [row[0] for row in rows] != [start, start + HOUR, start + 2 * HOUR]:
                    return False
            return True

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(ask, range(12)))
        assert len(exchange.requests) == 12 * 15


def test_nothing_listens_but_on_the_loopback_address(exchange: ReplayExchange) -> None:
    port = int(exchange.url.rsplit(":", 1)[1])
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


def test_leaving_the_context_stops_everything_even_open_connections(
    market: dict[SeriesKey, pl.DataFrame],
) -> None:
    session, threads = requests.Session(), set(threading.enumerate())
    with ReplayExchange(market, clock=ReplayClock(START)) as exchange:
        url = exchange.url
        session.get(url + "/api/v3/ping", timeout=10)
        started = set(threading.enumerate()) - threads
        begun = time.monotonic()
    assert time.monotonic() - begun < 1.0
    with pytest.raises(requests.ConnectionError):
        session.get(url + "/api/v3/ping", timeout=10)
    assert len(started) == 2  # the server's and the connection's
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    exchange.close()  # twice does no harm
    with ReplayExchange(market, clock=ReplayClock(START), port=int(url.rsplit(":", 1)[1])) as again:
        assert get(again, "/api/v3/ping") == {}


def test_serve_forever_ends_when_closed_from_elsewhere(market: dict[SeriesKey, pl.DataFrame]) -> None:
    exchange = ReplayExchange(market, clock=ReplayClock(START))
    thread = threading.Thread(target=exchange.serve_forever)
    thread.start()
    assert get(exchange, "/api/v3/ping") == {}
    exchange.close()
    thread.join(5)
    assert not thread.is_alive()


def test_a_taken_port_is_named(exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame]) -> None:
    port = int(exchange.url.rsplit(":", 1)[1])
    with pytest.raises(ExchangeError, match=f"port {port} of 127.0.0.1 to be free.*choose another"):
        ReplayExchange(market, clock=ReplayClock(START), port=port)


def test_candles_of_another_shape_are_refused(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with pytest.raises(ExchangeError, match="at least one series"):
        ReplayExchange({}, clock=ReplayClock(START))
    with pytest.raises(ExchangeError, match="CANDLE_SCHEMA in spot:BTCUSDT:1h"):
        ReplayExchange({KEYS[0]: market[KEYS[0]].drop("trades")}, clock=ReplayClock(START))
    with pytest.raises(ExchangeError, match="Expected candles in spot:BTCUSDT:1h"):
        ReplayExchange({KEYS[0]: market[KEYS[0]].clear()}, clock=ReplayClock(START))


def test_garbage_on_the_wire_does_not_stop_the_server(exchange: ReplayExchange) -> None:
    port = int(exchange.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in connection.recv(4096)
    assert get(exchange, "/api/v3/ping") == {}
