"""The REST client against the replay exchange, and against a server that answers what no exchange should."""

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from exchange.budget import WeightBudget
from exchange.errors import (
    BadInterval,
    BadRequest,
    BadSymbol,
    Banned,
    ExchangeError,
    GeoBlocked,
    Malformed,
    RateLimited,
    Unreachable,
)
from exchange.klines import klines_weight
from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from exchange.replay.answers import Answer
from exchange.replay.penalties import request_weight
from exchange.rest import ExchangeConfig, RestClient
from storage.schema import Market, SeriesKey

HOUR = 3_600_000
START = 1_700_006_400_000  # 2023-11-15 00:00 UTC
COUNT = 2_500
NOW = START + COUNT * HOUR + 60_000
UM, SPOT = SeriesKey.parse("um:AAAUSDT", "1h"), SeriesKey.parse("spot:AAAUSDT", "1h")
DATA = synthetic_market([UM, SPOT], start_ms=START, count=COUNT + 10, seed=5)


@pytest.fixture
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange(DATA, clock=ReplayClock(NOW)) as served:
        yield served


class Patience:
    """Sleeps that take no time and are remembered."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def client(self, config: ExchangeConfig, market: str = "um") -> RestClient:
        weights = WeightBudget(2400, clock=lambda: sum(self.slept), sleep=self.sleep)
        return RestClient(market, config, budget=weights, sleep=self.sleep)  # type: ignore[arg-type]


@pytest.fixture
def patience() -> Patience:
    return Patience()


def rows_of(pages: Iterator[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(list(pages))


def sentence(error: ExchangeError) -> str:
    """The message, which has to be one sentence of expected, found and remedy."""
    text = str(error)
    assert text.startswith("Expected ")
    assert ", found " in text
    assert ";" in text or ", move" in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("key", [UM, SPOT], ids=str)
@pytest.mark.parametrize("forward", [True, False])
def test_pages_of_either_direction_hold_every_closed_candle_exactly(
    exchange: ReplayExchange, patience: Patience, key: SeriesKey, forward: bool
) -> None:
    client = patience.client(exchange.config, key.market)
    pages = list(client.pages(key, START - 5 * HOUR, forward=forward))
    in_order = pages if forward else pages[::-1]
    assert_frame_equal(pl.concat(in_order), DATA[key][:COUNT], check_exact=True)
    assert max(len(page) for page in pages) == {"um": 499, "spot": 1000}[key.market]


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 502), (3, 503), (700, 1_800), (COUNT - 1, COUNT)])
def test_a_range_is_half_open_and_takes_no_page_more_than_it_needs(
    exchange: ReplayExchange, patience: Patience, forward: bool, first: int, last: int
) -> None:
    client = patience.client(exchange.config)
    pages = list(client.pages(UM, START + first * HOUR, START + last * HOUR, forward))
    assert_frame_equal(pl.concat(pages if forward else pages[::-1]), DATA[UM][first:last], check_exact=True)
    klines = [request for request in exchange.requests if request.path.endswith("/klines")]
    assert len(klines) == -(-(last - first) // 499)
    assert sum(request.rows for request in klines) == last - first


def test_the_exchange_decides_by_its_clock_what_is_closed_and_is_asked_once(
    exchange: ReplayExchange, patience: Patience
) -> None:
    exchange.clock.set(START + 1_100 * HOUR - 1)
    client = patience.client(exchange.config)
    assert len(rows_of(client.pages(UM, START))) == 1_099
    assert [request.path for request in exchange.requests].count("/fapi/v1/time") == 1
    assert (
        sum(request.rows for request in exchange.requests) == 1_099
    )  # the forming one is not even asked for
    assert len(rows_of(client.pages(UM, START, server_ms=START + 10 * HOUR))) == 10


@pytest.mark.parametrize("market", ["spot", "um"])
def test_the_weight_of_every_limit_is_the_exchanges(market: Market) -> None:
    for limit in range(1, 1_501):
        assert klines_weight(market, limit) == request_weight(market, "klines", {"limit": str(limit)})


def test_short_ranges_weigh_less(exchange: ReplayExchange, patience: Patience) -> None:
    client = patience.client(exchange.config)
    list(client.pages(UM, START, START + 99 * HOUR, server_ms=NOW))
    list(client.pages(UM, START, START + 499 * HOUR, server_ms=NOW))
    assert [request.weight for request in exchange.requests] == [1, 2]
    assert client.budget.used == 3


def test_the_first_candle_is_the_listing(exchange: ReplayExchange, patience: Patience) -> None:
    assert patience.client(exchange.config).first_open_ms(UM) == START


@pytest.mark.parametrize("market", ["spot", "um"])
def test_symbol_and_ticker_are_what_the_exchange_says(
    exchange: ReplayExchange, patience: Patience, market: str
) -> None:
    client = patience.client(exchange.config, market)
    assert client.symbol_info("AAAUSDT")["symbol"] == "AAAUSDT"
    key = SeriesKey.parse(f"{market}:AAAUSDT", "1h")
    last = float(client.ticker_24h("AAAUSDT")["lastPrice"])
    assert DATA[key]["low"][COUNT] <= last <= DATA[key]["high"][COUNT]
    assert client.server_time_ms() == NOW


def test_the_limit_is_read_from_the_exchange(patience: Patience) -> None:
    with ReplayExchange(DATA, clock=ReplayClock(NOW), weight_limits={"spot": 1234, "um": 321}) as exchange:
        for market, limit in (("spot", 1234), ("um", 321)):
            client = patience.client(exchange.config, market)
            client.symbol_info("AAAUSDT")
            assert client.budget.limit_per_minute == limit


@pytest.mark.parametrize("market", ["spot", "um"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda client, key: list(client.pages(key, START)),
        lambda client, key: client.symbol_info(key.symbol),
        lambda client, key: client.first_open_ms(key),
    ],
    ids=["pages", "symbol_info", "first_open_ms"],
)
def test_an_unknown_symbol_is_named_with_its_market_and_neighbours(
    exchange: ReplayExchange, patience: Patience, market: str, ask: Callable[[RestClient, SeriesKey], object]
) -> None:
    client = patience.client(exchange.config, market)
    with pytest.raises(BadSymbol) as caught:
        ask(client, SeriesKey.parse(f"{market}:AAUSDT", "1h"))
    text = sentence(caught.value)
    assert f"Binance {market} lists, found 'AAUSDT'" in text
    assert "near it: AAAUSDT" in text
    assert patience.slept == []


def test_an_unknown_symbol_is_still_named_when_the_list_of_symbols_fails(
    exchange: ReplayExchange, patience: Patience
) -> None:
    exchange.faults = [Fault("500", "*/exchangeInfo")]
    with pytest.raises(BadSymbol) as caught:
        patience.client(exchange.config).first_open_ms(SeriesKey.parse("um:AAUSDT", "1h"))
    assert sentence(caught.value).endswith("check the spelling.")


def test_an_interval_of_the_other_market_is_refused_with_the_valid_ones(
    exchange: ReplayExchange, patience: Patience
) -> None:
    with pytest.raises(BadInterval) as caught:
        patience.client(exchange.config).first_open_ms(SeriesKey.parse("um:AAAUSDT", "1s"))
    text = sentence(caught.value)
    assert "found '1s'" in text
    assert "choose one of 1m, 3m, 5m, 15m, 30m, 1h, 2h, 4h, 6h, 8h, 12h, 1d, 3d, 1w, 1M." in text


def test_a_series_of_the_other_market_is_our_callers_mistake(
    exchange: ReplayExchange, patience: Patience
) -> None:
    with pytest.raises(ValueError, match="market um, found spot:AAAUSDT:1h"):
        list(patience.client(exchange.config).pages(SPOT, START))


@pytest.mark.parametrize("kind", ["reset", "500", "503", "truncated", "short", "duplicate", "html403", "429"])
def test_a_passing_fault_is_outlived(exchange: ReplayExchange, patience: Patience, kind: str) -> None:
    exchange.faults = [Fault(kind, "*/klines", on=(1, 2, 4, 5))]  # type: ignore[arg-type]
    client = patience.client(exchange.config)
    assert_frame_equal(rows_of(client.pages(UM, START)), DATA[UM][:COUNT], check_exact=True)
    assert client.requests == len(exchange.requests)
    assert len(patience.slept) >= 4


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("reset", Unreachable, "exchange.um_url"),
        ("short", Unreachable, "IncompleteRead"),
        ("500", Unreachable, "HTTP 500"),
        ("503", Unreachable, "HTTP 503 (Server is currently overloaded"),
        ("truncated", Malformed, "JSONDecodeError"),
        ("duplicate", Malformed, "one row per open_time"),
        ("429", RateLimited, "wait 1 s"),
        ("html403", RateLimited, "firewall"),
    ],
)
def test_a_lasting_fault_is_raised_after_the_attempts(
    exchange: ReplayExchange, patience: Patience, kind: str, error: type[ExchangeError], words: str
) -> None:
    exchange.faults = [Fault(kind)]  # type: ignore[arg-type]
    config = ExchangeConfig(um_url=exchange.url, attempts=3)
    with pytest.raises(error) as caught:
        list(patience.client(config).pages(UM, START, START + 99 * HOUR, server_ms=NOW))
    assert words in sentence(caught.value)
    assert exchange.url in str(caught.value)
    assert len(exchange.requests) == 3


def test_waits_grow_between_attempts(exchange: ReplayExchange, patience: Patience) -> None:
    exchange.faults = [Fault("500")]
    with pytest.raises(Unreachable):
        patience.client(exchange.config).server_time_ms()
    assert len(patience.slept) == 5
    for attempt, seconds in enumerate(patience.slept):
        assert 0.5 * 2**attempt <= seconds <= 0.5 * 2**attempt + 1


def test_a_slow_answer_is_given_up_and_asked_for_again(exchange: ReplayExchange, patience: Patience) -> None:
    exchange.faults = [Fault("slow", on=(1,), delay_s=0.6)]
    config = ExchangeConfig(um_url=exchange.url, timeout_s=0.2)
    assert patience.client(config).server_time_ms() == NOW
    exchange.faults = [Fault("slow", delay_s=0.3)]
    with pytest.raises(Unreachable, match="no answer in time"):
        patience.client(ExchangeConfig(um_url=exchange.url, timeout_s=0.1, attempts=2)).server_time_ms()


def test_retry_after_is_obeyed_by_every_client_of_the_budget(
    exchange: ReplayExchange, patience: Patience
) -> None:
    exchange.faults = [Fault("429", on=(1,), retry_after_s=33)]
    config = ExchangeConfig(um_url=exchange.url, attempts=1)
    first = patience.client(config)
    other = RestClient("um", config, budget=first.budget, sleep=patience.sleep)
    with pytest.raises(RateLimited) as caught:
        first.server_time_ms()
    assert caught.value.retry_after_s == 33
    assert patience.slept == []
    other.server_time_ms()
    assert sum(patience.slept) == pytest.approx(33)


def test_a_very_long_retry_after_is_the_callers_business(
    exchange: ReplayExchange, patience: Patience
) -> None:
    exchange.faults = [Fault("429", retry_after_s=4_000)]
    with pytest.raises(RateLimited, match="wait 4000 s"):
        patience.client(exchange.config).server_time_ms()
    assert patience.slept == []
    assert len(exchange.requests) == 1


def test_a_ban_says_until_when_and_no_client_of_the_budget_asks_again(
    exchange: ReplayExchange, patience: Patience
) -> None:
    exchange.faults = [Fault("418", retry_after_s=600)]
    client = patience.client(exchange.config)
    with pytest.raises(Banned) as caught:
        client.server_time_ms()
    until_ms = NOW + 600_000
    assert caught.value.until_ms == until_ms
    assert "banned until 2024-02-27 04:11:00 UTC" in sentence(caught.value)
    other = RestClient("um", exchange.config, budget=client.budget, sleep=patience.sleep)
    with pytest.raises(Banned):
        other.server_time_ms()
    assert len(exchange.requests) == 1
    assert patience.slept == []
    patience.sleep(601)
    exchange.faults = []
    assert other.server_time_ms() == NOW


def test_a_ban_without_words_lasts_at_least_as_long_as_the_shortest(patience: Patience) -> None:
    with Scripted(b"<html>teapot</html>", 418) as server, pytest.raises(Banned) as caught:
        patience.client(server.config).server_time_ms()
    assert caught.value.until_ms == pytest.approx((time.time() + 120) * 1000, abs=5_000)
    assert server.count == 1


@pytest.mark.parametrize(
    ("market", "words"),
    [
        ("spot", "set exchange.spot_url to https://data-api.binance.vision"),
        ("um", "run from a location that Binance serves, or import candles from files"),
    ],
)
def test_a_blocked_location_is_told_what_to_do_and_not_retried(
    exchange: ReplayExchange, patience: Patience, market: str, words: str
) -> None:
    exchange.faults = [Fault("451")]
    with pytest.raises(GeoBlocked) as caught:
        patience.client(exchange.config, market).server_time_ms()
    assert words in sentence(caught.value)
    assert len(exchange.requests) == 1


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_an_unreachable_host_is_named_with_the_cause_in_short(patience: Patience) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(Unreachable) as caught:
        patience.client(ExchangeConfig(spot_url=url), "spot").server_time_ms()
    text = sentence(caught.value)
    assert text.startswith(f"Expected an answer from {url}, found connection refused; ")
    assert "exchange.spot_url" in text
    assert len(text) < 200
    assert len(patience.slept) == 5


def test_a_host_without_a_name_is_unreachable_too(patience: Patience) -> None:
    config = ExchangeConfig(um_url="http://binance.invalid", attempts=1)
    with pytest.raises(Unreachable) as caught:
        patience.client(config).server_time_ms()
    assert sentence(caught.value).startswith("Expected an answer from http://binance.invalid, found ")
    assert "HTTPConnection" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spot_url": "api.binance.com"},
        {"um_url": "https://"},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"attempts": 0},
        {"workers": 0},
        {"spot_fallback_url": "data-api.binance.vision"},
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected .*, found .*; "):
        ExchangeConfig(**wrong)


def meddle(exchange: ReplayExchange, answer: Callable[[str, Callable[[str], Answer]], Answer]) -> None:
    """Let `answer(target, respond)` stand before the exchange."""
    respond = exchange._server.respond
    exchange._server.respond = lambda target: answer(target, respond)  # type: ignore[method-assign]


def test_pages_are_asked_for_side_by_side_and_come_in_order(
    exchange: ReplayExchange, patience: Patience
) -> None:
    together, first = Barrier(4), f"startTime={START}&"

    def answer(target: str, respond: Callable[[str], Answer]) -> Answer:
        if "/klines" in target and first not in target:
            together.wait(timeout=20)  # broken, and so an error, unless all four are under way
        return respond(target)

    meddle(exchange, answer)
    config = replace(exchange.config, workers=4, attempts=1)
    found = rows_of(patience.client(config).pages(UM, START, START + 5 * 499 * HOUR))
    assert_frame_equal(found, DATA[UM][: 5 * 499], check_exact=True)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize(("first", "last"), [(100, 1_800), (499, 1_500), (20, 25), (998, 2_499)])
def test_a_hole_of_any_length_is_passed_without_asking_through_it(
    patience: Patience, workers: int, first: int, last: int
) -> None:
    hourly = DATA[UM][:COUNT]
    holed = pl.concat([hourly[:first], hourly[last:]])
    with ReplayExchange({UM: holed}, clock=ReplayClock(NOW)) as exchange:
        client = patience.client(replace(exchange.config, workers=workers))
        found = rows_of(client.pages(UM, START - 10_000 * HOUR, server_ms=NOW))
    assert_frame_equal(found, holed, check_exact=True)
    assert client.requests <= -(-COUNT // 499) + 4  # a hole costs a few requests, however long it is


def test_an_exchange_that_gives_shorter_pages_than_asked_for_loses_nothing(
    exchange: ReplayExchange, patience: Patience
) -> None:
    meddle(exchange, lambda target, respond: respond(re.sub(r"limit=\d+", "limit=100", target)))
    found = rows_of(patience.client(exchange.config).pages(UM, START, server_ms=NOW))
    assert_frame_equal(found, DATA[UM][:COUNT], check_exact=True)


def test_an_error_ahead_is_raised_in_its_turn_and_the_pages_before_it_have_come(
    exchange: ReplayExchange, patience: Patience
) -> None:
    third = f"startTime={START + 2 * 499 * HOUR}&"
    broken = Answer(503, b"")
    meddle(exchange, lambda target, respond: broken if third in target else respond(target))
    pages = patience.client(exchange.config).pages(UM, START)
    assert [len(next(pages)) for _ in range(2)] == [499, 499]
    with pytest.raises(Unreachable, match="HTTP 503"):
        next(pages)
    assert len(patience.slept) >= exchange.config.attempts - 1


class Scripted:
    """A server that gives one fixed answer to everything."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.count = 0
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scripted.count += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.config = ExchangeConfig(um_url=f"http://127.0.0.1:{self._server.server_port}", attempts=2)

    def __enter__(self) -> "Scripted":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def wire_row(row: int, **changes: object) -> list[object]:
    """One sane row of the wire at an hour after START, with some of it changed."""
    open_ms = START + row * HOUR
    sane = {
        "open_time": open_ms,
        "open": "1.0",
        "high": "1.5",
        "low": "0.5",
        "close": "1.25",
        "volume": "10",
        "close_time": open_ms + HOUR - 1,
        "quote_volume": "12.5",
        "trades": 3,
        "taker": "4",
        "taker_quote": "5",
        "ignore": "0",
    }
    return list({**sane, **changes}.values())


def body_of(*rows: object) -> bytes:
    return json.dumps(rows).encode()


MALFORMED = {
    "not JSON": b"<html>login to the hotel's network</html>",
    "no list": b'{"rows": []}',
    "null": b"null",
    "rows that are none": b"[1, 2, 3]",
    "a short row": json.dumps([wire_row(0)[:9]]).encode(),
    "misorder": body_of(wire_row(2), wire_row(1)),
    "duplicates": body_of(wire_row(1), wire_row(1)),
    "before the start": body_of(wire_row(-1)),
    "after the end": body_of(wire_row(9)),
    "high below low": body_of(wire_row(0, high="0.1")),
    "a price that is no number": body_of(wire_row(0, open="1,0")),
    "a price of null": body_of(wire_row(0, close=None)),
    "not a number": body_of(wire_row(0, volume="NaN")),
    "a time in words": body_of(wire_row(0, open_time="2023-11-15")),
    "microseconds": body_of(wire_row(0, open_time=START * 1000, close_time=(START + HOUR) * 1000 - 1)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_is_not_what_was_asked_for_is_malformed(patience: Patience, name: str) -> None:
    with Scripted(MALFORMED[name]) as server, pytest.raises(Malformed) as caught:
        list(patience.client(server.config).pages(UM, START, START + 8 * HOUR, server_ms=NOW))
    sentence(caught.value)
    assert server.config.um_url in str(caught.value)
    assert server.count == 2  # it was asked for again


def test_rows_between_two_candles_are_left_out_and_said(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    askew = START + 2 * HOUR + 1_694_789  # as on 2018-02-09, when candles opened at 28:14.789
    rows = [wire_row(0), wire_row(1), wire_row(2, open_time=askew), wire_row(3)]
    with Scripted(body_of(*rows)) as server, caplog.at_level(logging.WARNING):
        pages = patience.client(server.config).pages(UM, START, START + 4 * HOUR, server_ms=NOW)
        opened = next(pages)["open_time"].dt.epoch("ms").to_list()
    assert opened == [START, START + HOUR, START + 3 * HOUR]
    assert "left out 1 candles" in caplog.text


def test_the_columns_of_the_wire_keep_their_meaning(patience: Patience) -> None:
    with Scripted(body_of(wire_row(0))) as server:
        pages = patience.client(server.config).pages(UM, START, START + HOUR, server_ms=NOW)
        (row,) = next(pages).drop("open_time", "close_time").to_dicts()
    assert row == {
        "open": 1.0,
        "high": 1.5,
        "low": 0.5,
        "close": 1.25,
        "volume": 10.0,
        "quote_volume": 12.5,
        "trades": 3,
        "taker_buy_volume": 4.0,
        "taker_buy_quote_volume": 5.0,
    }


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            400,
            b'{"code": -1100, "msg": "Illegal characters found."}',
            "error -1100 (Illegal characters found)",
        ),
        (404, b"<html>not here</html>", "found HTTP 404"),
        (413, b"[]", "found HTTP 413"),
    ],
)
def test_other_refusals_are_bad_requests_and_not_retried(
    patience: Patience, status: int, body: bytes, words: str
) -> None:
    with Scripted(body, status) as server, pytest.raises(BadRequest) as caught:
        patience.client(server.config).ticker_24h("AAAUSDT")
    assert words in sentence(caught.value)
    assert server.count == 1


def test_prices_are_read_as_python_reads_them(patience: Patience) -> None:
    """Every decimal becomes the nearest float, also with 17 digits and at the small end."""
    texts = ["0.00000001", "0.1234567890123456789", "67891.12999999999999545", "3.3333333333333335", "1e-7"]
    rows = [wire_row(row, open=text, high="99999", low="0.000000001") for row, text in enumerate(texts)]
    with Scripted(body_of(*rows)) as server:
        pages = patience.client(server.config).pages(UM, START, START + len(texts) * HOUR, server_ms=NOW)
        assert next(pages)["open"].to_list() == [float(text) for text in texts]
