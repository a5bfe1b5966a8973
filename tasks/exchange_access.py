"""The exchange as a command or an ingest talks to it: Binance, or a replay of it. Without Prefect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from exchange.archive import ArchiveClient
from exchange.budget import WeightBudget
from exchange.config import ArchiveConfig, ExchangeConfig
from exchange.governor import budget_of_reader, governor_of
from exchange.replay.source import replay_exchange
from exchange.rest import RestClient
from storage.interval import Interval
from storage.layout import Home
from storage.schema import Market, SeriesKey

__all__ = ["Exchange", "connected"]

logger = logging.getLogger(__name__)


class Exchange:
    """What the downloads of one ingest share: where to ask, one budget and one archive client per market.

    Who only `reads` the home shares its budget where there is one that can be written, and counts alone elsewhere.
    """

    def __init__(
        self, home: Home, config: ExchangeConfig, archive: ArchiveConfig, *, reads: bool = False
    ) -> None:
        self.home, self.config = home, config
        self.budgets: dict[Market, WeightBudget] = {}
        self._budget_of = budget_of_reader if reads else governor_of
        self._archive = archive
        self._archives: dict[Market, ArchiveClient] = {}
        self._lock = threading.Lock()

    def client(self, market: Market) -> RestClient:
        """A REST client of its own for a thread; close it after use."""
        with self._lock:
            if market not in self.budgets:
                self.budgets[market] = self._budget_of(self.home.lake, market, self.config.url_of(market))
        return RestClient(market, self.config, budget=self.budgets[market])

    def archive(self, market: Market) -> ArchiveClient | None:
        """The archive, unless it is not to be used."""
        with self._lock:
            if self._archive.enabled and market not in self._archives:
                self._archives[market] = ArchiveClient(market, self._archive)
        return self._archives.get(market)

    def top(self, market: Market, count: int, quote: str, interval: Interval) -> list[SeriesKey]:
        """The series of the most traded symbols."""
        with self.client(market) as client:
            symbols = client.top_symbols(count, quote)
        logger.info("The most traded %s symbols in %s: %s", market, quote, ", ".join(symbols))
        return [SeriesKey(market, symbol, interval) for symbol in symbols]

    def weight(self) -> str:
        """The request weight used in this minute, such as `um 240 of 2,400`."""
        with self._lock:
            budgets = dict(self.budgets)
        return ", ".join(f"{name} {one.used:,} of {one.limit_per_minute:,}" for name, one in budgets.items())

    def close(self) -> None:
        """Drop the archive's connections."""
        for archive in self._archives.values():
            archive.close()


@contextmanager
def connected(
    home: Home,
    replay: str,
    keys: Sequence[SeriesKey],
    exchange: ExchangeConfig,
    archive: ArchiveConfig,
    *,
    seed: int,
    whole_folder: bool = False,
    reads: bool = False,
) -> Iterator[Exchange]:
    """The exchange to talk to: Binance as configured, or a replay exchange that lives as long as the block.

    A replay of a `whole_folder` serves more than `keys`: everything there at their interval.
    """
    with ExitStack() as stack:
        if replay:
            server = replay_exchange(replay, keys, seed=seed, whole_folder=whole_folder)
            stack.enter_context(server)
            logger.info("Candles come from a replay exchange (%s), not from Binance.", replay)
            exchange, archive = server.config, replace(server.archive_config, enabled=archive.enabled)
        shared = Exchange(home, exchange, archive, reads=reads)
        stack.callback(shared.close)
        yield shared
