"""The one way to the exchange: its clients, one request budget per market and lake, and the bulk archive."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from exchange.archive import ArchiveClient
from exchange.budget import LIMITS_PER_MINUTE, WeightBudget
from exchange.config import ArchiveConfig, ExchangeConfig
from exchange.governor import FOLDER, Governor
from exchange.replay.source import replay_exchange
from exchange.rest import RestClient
from storage.interval import Interval
from storage.schema import Market, SeriesKey

__all__ = ["Exchange", "connected"]

logger = logging.getLogger(__name__)


class Exchange:
    """What all who ask share: where to ask, one budget and one archive client per market. Safe for many threads.

    Who only `reads` leaves the lake as it is: where no download has made a budget there, or it cannot be written, it
    counts alone. Without `archive` there is none. Waits for the budget and between tries are slept by `sleep`.
    """

    def __init__(
        self,
        lake: Path,
        config: ExchangeConfig,
        archive: ArchiveConfig | None = None,
        *,
        reads: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config = config
        self.budgets: dict[Market, WeightBudget] = {}
        self._lake, self._sleep, self._archive = lake, sleep, archive
        self._alone = reads and not os.access(lake / FOLDER, os.W_OK)
        self._archives: dict[Market, ArchiveClient] = {}
        self._lock = threading.Lock()

    def client(self, market: Market) -> RestClient:
        """A REST client of its own for a thread; close it after use."""
        with self._lock:
            if market not in self.budgets:
                self.budgets[market] = self._budget(market)
        return RestClient(market, self.config, budget=self.budgets[market], sleep=self._sleep)

    def _budget(self, market: Market) -> WeightBudget:
        if self._alone:
            return WeightBudget(LIMITS_PER_MINUTE[market], sleep=self._sleep)
        return Governor(self._lake / FOLDER, market, self.config.url_of(market), sleep=self._sleep)

    @contextmanager
    def clients(self, markets: Iterable[Market]) -> Iterator[dict[Market, RestClient]]:
        """A REST client for each of these markets, closed when the block ends."""
        with ExitStack() as stack:
            yield {market: stack.enter_context(self.client(market)) for market in dict.fromkeys(markets)}

    def archive(self, market: Market) -> ArchiveClient | None:
        """The archive, unless it is not to be used."""
        with self._lock:
            if self._archive and self._archive.enabled and market not in self._archives:
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
    lake: Path,
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
        shared = Exchange(lake, exchange, archive, reads=reads)
        stack.callback(shared.close)
        yield shared
