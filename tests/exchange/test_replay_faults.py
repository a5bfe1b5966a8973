"""Faults: each kind looks to a client as the real thing does, and strikes where it was told to."""

import time
from typing import Any

import polars as pl
import pytest
import requests

from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from storage.schema import SeriesKey

HOUR = 3_600_000
START = 1_717_200_000_000
KEY = SeriesKey.parse("spot:BTCUSDT", "1h")
KLINES = "/api/v3/klines?symbol=BTCUSDT&interval=1h&limit=50"


@pytest.fixture(scope="module")
def market() -> dict[SeriesKey, pl.DataFrame]:
    return synthetic_market([KEY], start_ms=START, count=100, seed=5)


def exchange_with(market: dict[SeriesKey, pl.DataFrame], *faults: Fault) -> ReplayExchange:
    return ReplayExchange(market, clock=ReplayClock(START + 100 * HOUR), faults=faults)


def ask(exchange: ReplayExchange, target: str = KLINES) -> requests.Response:
    return requests.get(exchange.url + target, timeout=10)


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        ("429", -1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE."),
        ("418", -1003, "Way too much request weight used; IP banned until "),
        ("451", 0, "Service unavailable from a restricted location"),
        ("500", -1000, "An unknown error occurred"),
        ("503", -1008, "Server is currently overloaded"),
    ],
)
def test_error_answers_have_binances_status_and_body(
    market: dict[SeriesKey, pl.DataFrame], kind: Any, code: int, text: str
) -> None:
    with exchange_with(market, Fault(kind, on=(1,), retry_after_s=7)) as exchange:
        answer = ask(exchange)
        assert answer.status_code == int(kind)
        assert answer.json()["code"] == code
        assert answer.json()["msg"].startswith(text)
        if kind in ("429", "418"):
            assert answer.headers["Retry-After"] == {"429": "7", "418": "120"}[kind]
        assert len(ask(exchange).json()) == 50
        assert [request.fault for request in exchange.requests] == [kind, None]


def test_the_firewall_answers_html(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("html403")) as exchange:
        answer = ask(exchange)
        assert (answer.status_code, answer.headers["Content-Type"]) == (403, "text/html")
        with pytest.raises(requests.JSONDecodeError):
            answer.json()


def test_a_reset_connection_breaks_off_in_the_body(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("reset", on=(1,))) as exchange:
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)) as raised:
            ask(exchange)
        assert "Connection reset by peer" in str(raised.value)
        assert len(ask(exchange).json()) == 50


def test_truncated_json_comes_with_a_fitting_length(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("truncated", on=(2,))) as exchange:
        whole, cut = ask(exchange), ask(exchange)
        assert cut.status_code == 200
        assert int(cut.headers["Content-Length"]) == len(cut.content) == len(whole.content) // 2
        assert whole.content.startswith(cut.content)
        with pytest.raises(requests.JSONDecodeError):
            cut.json()


def test_a_short_body_ends_before_its_promised_length(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with (
        exchange_with(market, Fault("short")) as exchange,
        pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"),
    ):
        ask(exchange)


def test_a_slow_answer_is_right_but_late(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("slow", delay_s=0.3)) as exchange:
        begun = time.monotonic()
        assert len(ask(exchange).json()) == 50
        assert time.monotonic() - begun >= 0.3
        with pytest.raises(requests.ReadTimeout):
            requests.get(exchange.url + KLINES, timeout=0.1)


def test_a_dripping_body_comes_whole_in_two_pieces(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("drip", delay_s=0.2, on=(2,))) as exchange:
        right, begun = ask(exchange).json(), time.monotonic()
        assert ask(exchange).json() == right
        assert time.monotonic() - begun >= 0.2


def test_a_slow_answer_does_not_hold_up_the_end(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("slow", delay_s=60)) as exchange:
        with pytest.raises(requests.ReadTimeout):
            requests.get(exchange.url + KLINES, timeout=0.1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


def test_rows_are_doubled_or_left_out(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("duplicate", on=(2,)), Fault("missing", on=(3,))) as exchange:
        right, doubled, missing = ([row[0] for row in ask(exchange).json()] for _ in range(3))
        assert len(doubled) == 51
        assert sorted(set(doubled)) == right
        assert len(missing) == 49
        assert set(missing) < set(right)
        assert [request.rows for request in exchange.requests] == [50, 51, 49]


def test_rows_change_places_and_pages_come_again(market: dict[SeriesKey, pl.DataFrame]) -> None:
    with exchange_with(market, Fault("unordered", on=(2,)), Fault("stale", on=(3, 4))) as exchange:
        right, unordered, stale = (ask(exchange).json() for _ in range(3))
        assert unordered == right[25:] + right[:25]
        assert stale == unordered


def test_faults_strike_the_requests_they_are_told_to(market: dict[SeriesKey, pl.DataFrame]) -> None:
    faults = (Fault("500", "*/klines", every=3), Fault("503", "*/time", on=(2, 4), times=1))
    with exchange_with(market, *faults) as exchange:
        assert [ask(exchange).status_code for _ in range(7)] == [200, 200, 500, 200, 200, 500, 200]
        times = [ask(exchange, "/api/v3/time").status_code for _ in range(5)]
        assert times == [200, 503, 200, 200, 200]
        assert ask(exchange, "/fapi/v1/ping").status_code == 200
        exchange.faults = (Fault("500"),)
        assert ask(exchange, "/fapi/v1/ping").status_code == 500
        exchange.faults = ()
        assert ask(exchange).status_code == 200


def test_random_faults_are_seeded() -> None:
    fault = Fault("500", probability=0.2, seed=4)
    hits = [number for number in range(1, 2001) if fault.hits(number)]
    assert hits == [number for number in range(1, 2001) if fault.hits(number)]
    assert 320 < len(hits) < 480
    other = Fault("500", probability=0.2, seed=5)
    assert hits != [number for number in range(1, 2001) if other.hits(number)]


def test_a_fault_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind: expected 429\|.*, found '404'; correct it"):
        Fault("404")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"probability: expected from 0 to 1, found 1\.5; lower it"):
        Fault("500", probability=1.5)
    with pytest.raises(ValueError, match="request numbers from 1"):
        Fault("500", on=(0,))
