"""Everybody who asks the exchange goes through one budget per market, kept in the lake."""

import threading
import time
from pathlib import Path

import pytest

from exchange.archive import ArchiveConfig
from exchange.budget import SHARE
from exchange.config import ExchangeConfig
from exchange.connect import Exchange, connected
from exchange.governor import Governor
from exchange.monitor import Stopped, interruptible
from exchange.replay.faults import Fault
from exchange.replay.source import replay_exchange
from storage.schema import SeriesKey

KEYS = [SeriesKey.parse("um:DOGEUSDT", "1h"), SeriesKey.parse("spot:BTCUSDT", "1h")]


def test_all_clients_of_a_market_share_one_budget_that_lies_in_the_lake(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path, ExchangeConfig())
    with exchange.client("um") as first, exchange.client("um") as second, exchange.client("spot") as other:
        assert first is not second
        assert first.budget is second.budget is not other.budget
        assert isinstance(first.budget, Governor)
        assert first.budget.share == SHARE
        first.budget.before(1)
    assert (tmp_path / ".budget" / "um.json").exists()
    with Exchange(tmp_path, ExchangeConfig()).client("um") as later:
        assert later.budget.used == 1, "another exchange over the same lake knows of it"


def test_there_is_a_client_for_each_market_once_and_all_are_closed(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path, ExchangeConfig())
    with exchange.clients(key.market for key in [*KEYS, *KEYS]) as clients:
        assert {market: client.market for market, client in clients.items()} == {"um": "um", "spot": "spot"}
    for client in clients.values():
        with pytest.raises(RuntimeError, match="after shutdown"):
            client._pool.submit(time.time)


def test_a_wait_ends_as_the_given_sleep_says(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with replay_exchange("synthetic", KEYS, seed=0) as server:
        server.faults = [Fault("429", retry_after_s=300)]
        exchange = Exchange(tmp_path, server.config, sleep=interruptible(stop))
        with exchange.clients(["um"]) as clients, pytest.raises(Stopped):
            clients["um"].server_time_ms()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_replay_stands_in_for_binance_and_its_archive_as_long_as_the_block(
    tmp_path: Path, enabled: bool
) -> None:
    places = (ExchangeConfig(), ArchiveConfig(enabled=enabled))
    with connected(tmp_path, "synthetic", KEYS, *places, seed=0) as exchange:
        assert exchange.config.url_of("um").startswith("http://127.0.0.1:")
        archive = exchange.archive("um")
        assert (archive is not None) == enabled
        assert exchange.archive("um") is archive
        with exchange.client("um") as client:
            assert client.server_time_ms() > 0
        assert exchange.weight().startswith("um ")
    with connected(tmp_path, "", KEYS, *places, seed=0) as exchange:
        assert exchange.config == ExchangeConfig()
    assert Exchange(tmp_path, ExchangeConfig()).archive("um") is None
