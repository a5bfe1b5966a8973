"""What the replayed exchange answers to requests for candles, against naive loops over the data."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import requests

from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from exchange.replay.encoding import decimal_texts
from storage.interval import Interval
from storage.schema import CANDLE_SCHEMA, SeriesKey

HOUR = 3_600_000
START = 1_717_200_000_000  # 2024-06-01 00:00 UTC, a Saturday
SPOT = SeriesKey.parse("spot:BTCUSDT", "1h")
UM = SeriesKey.parse("um:DOGEUSDT", "1h")
COUNT = 5000  # more than one encoded block
COLUMNS = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume")
PATHS = {"spot": "/api/v3/klines", "um": "/fapi/v1/klines"}
SESSION = requests.Session()

Row = list[Any]


@pytest.fixture(scope="module")
def market() -> dict[SeriesKey, pl.DataFrame]:
    return synthetic_market([SPOT, UM], start_ms=START, count=COUNT, seed=3)


@pytest.fixture(scope="module")
def exchange(market: dict[SeriesKey, pl.DataFrame]) -> Iterator[ReplayExchange]:
    limits = {"spot": 10**9, "um": 10**9}
    with ReplayExchange(market, clock=ReplayClock(START), weight_limits=limits) as running:
        yield running


def klines(exchange: ReplayExchange, key: SeriesKey = SPOT, **params: object) -> list[Row]:
    query = {"symbol": key.symbol, "interval": key.interval.name, **params}
    answer = SESSION.get(exchange.url + PATHS[key.market], params=query, timeout=10)
    assert answer.status_code == 200, answer.text
    rows: list[Row] = answer.json()
    return rows


def naive_rows(frame: pl.DataFrame) -> list[tuple[int, int, tuple[float, ...], int]]:
    return [
        (
            int(row["open_time"].timestamp() * 1000),
            round(row["close_time"].timestamp() * 1000),
            tuple(row[name] for name in COLUMNS),
            row["trades"],
        )
        for row in frame.iter_rows(named=True)
    ]


def parsed(rows: list[Row]) -> list[tuple[int, int, tuple[float, ...], int]]:
    return [(row[0], row[6], tuple(float(row[i]) for i in (1, 2, 3, 4, 5, 7, 9)), row[8]) for row in rows]


@pytest.mark.parametrize("key", [SPOT, UM])
def test_every_value_survives_the_wire(
    exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame], key: SeriesKey
) -> None:
    exchange.clock.set(START + COUNT * HOUR)
    rows: list[Row] = []
    while page := klines(exchange, key, limit=999, startTime=rows[-1][0] + 1 if rows else 0):
        rows += page
    assert parsed(rows) == naive_rows(market[key])
    assert all(len(row) == 12 and row[11] == "0" for row in rows)
    assert all(isinstance(row[i], str) for row in rows[:3] for i in (1, 2, 3, 4, 5, 7, 9, 10))
    if key.market == "spot":
        assert all(len(row[i].split(".")[1]) == 8 for row in rows for i in (1, 2, 3, 4, 5, 7, 9, 10))


@pytest.mark.parametrize(
    "case",
    [
        (None, None, 5),
        (0, None, 1),
        (START + 10 * HOUR, None, 7),
        (START + 10 * HOUR + 1, None, 7),
        (None, START + 20 * HOUR, 7),
        (None, START + 20 * HOUR - 1, 7),
        (START + 3 * HOUR, START + 6 * HOUR, 500),
        (START + 3 * HOUR, START + 300 * HOUR, 4),
        (START + 9 * HOUR, START + 9 * HOUR, 500),
        (START + 9 * HOUR + 1, START + 9 * HOUR + 1, 500),
        (0, START - 1, 500),
        (START + 4090 * HOUR, START + 4100 * HOUR, 500),
        (START + 4095 * HOUR, START + 4096 * HOUR, 500),
        (START + COUNT * HOUR, None, 500),
        (None, START + 10**6 * HOUR, 3),
    ],
)
def test_start_end_and_limit_select_as_a_naive_loop_does(
    exchange: ReplayExchange,
    market: dict[SeriesKey, pl.DataFrame],
    case: tuple[int | None, int | None, int],
) -> None:
    exchange.clock.set(START + COUNT * HOUR)
    start, end, limit = case
    opens = [row[0] for row in naive_rows(market[SPOT])]
    expected = [ms for ms in opens if (start is None or ms >= start) and (end is None or ms <= end)]
    expected = expected[-limit:] if start is None else expected[:limit]
    params = {"startTime": start, "endTime": end, "limit": limit}
    found = klines(exchange, **{name: value for name, value in params.items() if value is not None})
    assert [row[0] for row in found] == expected


def test_limits_default_to_500_and_spot_caps_at_1000_in_silence(exchange: ReplayExchange) -> None:
    exchange.clock.set(START + COUNT * HOUR)
    assert len(klines(exchange)) == 500
    assert len(klines(exchange, limit=1500)) == 1000
    assert len(klines(exchange, UM)) == 500
    assert len(klines(exchange, UM, limit=1500)) == 1500


def test_spot_understands_times_in_microseconds(exchange: ReplayExchange) -> None:
    exchange.clock.set(START + COUNT * HOUR)
    found = klines(exchange, startTime=(START + 5 * HOUR) * 1000, limit=1)
    assert found[0][0] == START + 5 * HOUR


def test_advancing_the_clock_reveals_candles_and_nothing_beyond_it(exchange: ReplayExchange) -> None:
    exchange.clock.set(START - 1)
    assert klines(exchange) == []
    exchange.clock.set(START)
    assert [row[0] for row in klines(exchange)] == [START]
    exchange.clock.set(START + 3 * HOUR - 1)
    assert [row[0] for row in klines(exchange)] == [START, START + HOUR, START + 2 * HOUR]
    exchange.clock.advance(1)
    assert [row[0] for row in klines(exchange)][-1] == START + 3 * HOUR
    assert klines(exchange, startTime=START + 4 * HOUR) == []
    assert klines(exchange, startTime=0, endTime=START + 99 * HOUR)[-1][0] == START + 3 * HOUR


@pytest.mark.parametrize("key", [SPOT, UM])
def test_a_forming_candle_grows_into_the_finished_one(
    exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame], key: SeriesKey
) -> None:
    for number in range(15):
        final = naive_rows(market[key])[number]
        earlier: tuple[float, ...] | None = None
        for minute in range(0, 60, 9):
            exchange.clock.set(START + number * HOUR + minute * 60_000)
            ((opened, closed, values, trades),) = parsed(klines(exchange, key, limit=1))
            open_, high, low, close, volume, quote, taker = values
            assert (opened, closed, open_) == (final[0], final[1], final[2][0])
            assert final[2][2] <= low <= min(open_, close) <= max(open_, close) <= high <= final[2][1]
            assert volume <= final[2][4]
            assert quote <= final[2][5]
            assert taker <= volume
            assert trades <= final[3]
            if earlier is not None:
                assert high >= earlier[1]
                assert low <= earlier[2]
                assert volume >= earlier[4]
            earlier = values
        exchange.clock.set(START + (number + 1) * HOUR)
        assert parsed(klines(exchange, key, startTime=opened, limit=1)) == [final]


def test_a_rising_candle_forms_over_its_low_and_a_falling_one_over_its_high(
    exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame]
) -> None:
    for number in range(20):
        row = market[SPOT].row(number, named=True)
        exchange.clock.set(START + number * HOUR + HOUR // 3)
        ((_, _, values, trades),) = parsed(klines(exchange, limit=1))
        assert values[3] == (row["low"] if row["close"] >= row["open"] else row["high"])
        assert trades == row["trades"] // 3


def test_a_forming_candle_is_the_same_for_the_same_clock(exchange: ReplayExchange) -> None:
    exchange.clock.set(START + 700 * HOUR + 1_234_567)
    assert klines(exchange, limit=1) == klines(exchange, limit=1)


@pytest.mark.parametrize("name", ["2h", "4h", "12h", "1d", "3d", "1w", "1M"])
def test_longer_intervals_are_exact_sums_of_the_stored_ones(
    exchange: ReplayExchange, market: dict[SeriesKey, pl.DataFrame], name: str
) -> None:
    interval = Interval(name)
    exchange.clock.set(START + COUNT * HOUR)
    coarse = SeriesKey(UM.market, UM.symbol, interval)
    served = parsed(klines(exchange, coarse, limit=1500, startTime=0))
    buckets: dict[int, list[dict[str, Any]]] = {}
    for row in market[UM].iter_rows(named=True):
        buckets.setdefault(interval.floor(int(row["open_time"].timestamp() * 1000)), []).append(row)
    complete = {ms: rows for ms, rows in buckets.items() if interval.close(ms) < START + COUNT * HOUR}
    assert [row[0] for row in served] == list(complete)[:1500]
    for opened, closed, values, trades in served:
        rows = complete[opened]
        sums = [
            float(sum(Decimal(repr(row[column])) for row in rows))
            for column in ("volume", "quote_volume", "taker_buy_volume")
        ]
        prices = [rows[0]["open"], max(row["high"] for row in rows), min(row["low"] for row in rows)]
        assert closed == interval.close(opened)
        assert list(values) == [*prices, rows[-1]["close"], *sums]
        assert trades == sum(row["trades"] for row in rows)


def test_a_forming_longer_candle_spans_the_visible_shorter_ones(exchange: ReplayExchange) -> None:
    exchange.clock.set(START + 402 * HOUR + 1_800_000)
    (day,) = klines(exchange, SeriesKey("spot", "BTCUSDT", Interval("1d")), limit=1)
    hours = klines(exchange, startTime=day[0])
    assert len(hours) == 402 % 24 + 1
    assert day[1] == hours[0][1]
    assert float(day[2]) == max(float(row[2]) for row in hours)
    assert float(day[3]) == min(float(row[3]) for row in hours)
    assert day[4] == hours[-1][4]
    assert Decimal(day[5]) == sum(Decimal(row[5]) for row in hours)
    assert day[8] == sum(row[8] for row in hours)


def test_a_shorter_interval_than_the_stored_one_is_refused_with_what_there_is(
    exchange: ReplayExchange,
) -> None:
    query = {"symbol": "BTCUSDT", "interval": "15m"}
    answer = requests.get(exchange.url + "/api/v3/klines", params=query, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["code"] == -1130
    assert "1h, 2h, 4h, 6h, 8h, 12h, 1d, 3d, 1w, 1M" in answer.json()["msg"]


def test_nulls_are_served_as_documented() -> None:
    candles = synthetic_market([UM], start_ms=START, count=3, seed=1)[UM].with_columns(
        pl.lit(None, CANDLE_SCHEMA[name]).alias(name)
        for name in ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
    )
    with ReplayExchange({UM: candles}, clock=ReplayClock(START + 3 * HOUR)) as exchange:
        rows = klines(exchange, UM)
    for row, original in zip(rows, candles.iter_rows(named=True), strict=True):
        mean = original["open"] + original["high"] + original["low"] + original["close"]
        assert float(row[7]) == original["volume"] * mean / 4
        assert (row[8], float(row[9]), float(row[10])) == (0, 0.0, 0.0)


def test_decimals_are_exact_and_never_exponents() -> None:
    values = [1e-7, 1.5e-5, 0.1 + 0.2, 1e16, 6.00365408e8, 1.2345678901234567e17, 5.0, 0.0, 2.5e-9, 1e22]
    for decimals in (0, 2, 8):
        texts = decimal_texts(pl.Series(values), decimals).to_list()
        assert [float(text) for text in texts] == values
        assert not any("e" in text for text in texts)
        assert all(len(text.partition(".")[2]) >= decimals for text in texts)
    assert decimal_texts(pl.Series(values), 0)[4] == "600365408"
    assert decimal_texts(pl.Series(values), 8)[1] == "0.00001500"


def test_real_candles_arrive_value_by_value(shared_data: Path) -> None:
    from storage.candle_files import read_folder

    candles = read_folder(shared_data, Interval("1h"))
    assert len(candles) > 5
    last = max(int(frame["close_time"][-1].timestamp() * 1000) for frame in candles.values())
    clock = ReplayClock(last + 1000)
    with ReplayExchange(candles, clock=clock, weight_limits={"spot": 10**9, "um": 10**9}) as exchange:
        session = requests.Session()
        for key, frame in candles.items():
            rows: list[Row] = []
            limit = 1000 if key.market == "spot" else 1500
            while True:
                start = rows[-1][0] + 1 if rows else 0
                query = f"?symbol={key.symbol}&interval=1h&limit={limit}&startTime={start}"
                page = json.loads(session.get(exchange.url + PATHS[key.market] + query, timeout=10).content)
                if not page:
                    break
                rows += page
            for position, name in ((1, "open"), (2, "high"), (3, "low"), (4, "close"), (5, "volume")):
                assert [float(row[position]) for row in rows] == frame[name].to_list()
            quotes = frame["quote_volume"].to_list()
            assert all(float(row[7]) == quote for row, quote in zip(rows, quotes, strict=True) if quote)
