"""An unmodified client of Binance sees Binance: python-binance pages through both markets."""

from collections.abc import Iterator

import polars as pl
import pytest
from binance.client import Client
from binance.enums import HistoricalKlinesType
from binance.exceptions import BinanceAPIException

from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from storage.schema import SeriesKey

HOUR = 3_600_000
START = 1_717_200_000_000
COUNT = 2500
KEYS = {
    HistoricalKlinesType.SPOT: SeriesKey.parse("spot:BTCUSDT", "1h"),
    HistoricalKlinesType.FUTURES: SeriesKey.parse("um:DOGEUSDT", "1h"),
}


@pytest.fixture(scope="module")
def market() -> dict[SeriesKey, pl.DataFrame]:
    return synthetic_market(list(KEYS.values()), start_ms=START, count=COUNT, seed=8)


@pytest.fixture
def exchange(market: dict[SeriesKey, pl.DataFrame]) -> Iterator[ReplayExchange]:
    with ReplayExchange(market, clock=ReplayClock(START + COUNT * HOUR)) as running:
        yield running


@pytest.fixture
def client(exchange: ReplayExchange, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Only the two addresses differ from what its users have; the constructor pings."""
    monkeypatch.setattr(Client, "API_URL", exchange.url + "/api")
    monkeypatch.setattr(Client, "FUTURES_URL", exchange.url + "/fapi")
    client = Client()
    assert [request.path for request in exchange.requests] == ["/api/v3/ping"]
    yield client
    client.close_connection()


@pytest.mark.parametrize("kind", list(KEYS))
def test_it_downloads_every_candle(
    client: Client,
    exchange: ReplayExchange,
    market: dict[SeriesKey, pl.DataFrame],
    kind: HistoricalKlinesType,
) -> None:
    frame = market[KEYS[kind]]
    rows = client.get_historical_klines(KEYS[kind].symbol, "1h", START - 5 * HOUR, klines_type=kind)
    assert [row[0] for row in rows] == frame["open_time"].dt.epoch("ms").to_list()
    for position, name in (
        (1, "open"),
        (2, "high"),
        (3, "low"),
        (4, "close"),
        (5, "volume"),
        (7, "quote_volume"),
    ):
        assert [float(row[position]) for row in rows] == frame[name].to_list()
    assert [row[8] for row in rows] == frame["trades"].to_list()
    assert [request.rows for request in exchange.requests] == [0, 1, 1000, 1000, 500]


def test_it_reads_time_symbols_and_tickers(client: Client) -> None:
    assert client.get_server_time() == {"serverTime": START + COUNT * HOUR}
    assert client.futures_time() == {"serverTime": START + COUNT * HOUR}
    assert client.get_symbol_info("BTCUSDT")["quoteAsset"] == "USDT"
    assert client.futures_exchange_info()["symbols"][0]["contractType"] == "PERPETUAL"
    assert float(client.get_ticker(symbol="BTCUSDT")["lastPrice"]) > 0
    assert client.futures_ticker(symbol="DOGEUSDT")["count"] > 0


def test_it_understands_the_errors(client: Client) -> None:
    for call in (client.get_klines, client.futures_klines):
        with pytest.raises(BinanceAPIException) as raised:
            call(symbol="NOPEUSDT", interval="1h")
        assert (raised.value.status_code, raised.value.code) == (400, -1121)
        assert raised.value.message == "Invalid symbol."
