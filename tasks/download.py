"""Candles from the exchange into the lake."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace

from prefect import task

from exchange.archive import ArchiveClient, ArchiveConfig
from exchange.budget import WeightBudget
from exchange.errors import ExchangeError
from exchange.governor import budget_of_reader, governor_of
from exchange.replay.source import replay_exchange
from exchange.rest import ExchangeConfig, RestClient
from exchange.sync import SyncReport, sync_series
from storage.errors import StorageError
from storage.interval import Interval
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import Market, SeriesKey
from tasks.policies import IDEMPOTENT
from tasks.progress import ingest_progress
from tasks.refs import IngestRef, SeriesRef

__all__ = [
    "Exchange",
    "IncompleteIngest",
    "connected",
    "download",
    "download_all",
]

logger = logging.getLogger(__name__)

SERIES_AT_ONCE = 4  # each keeps the network and a core busy at times


class IncompleteIngest(ExchangeError):  # noqa: N818  # it says what happened
    """Some series could not be brought up to date; the others are in the lake."""

    def __init__(self, message: str, ingested: IngestRef) -> None:
        super().__init__(message)
        self.ingested = ingested


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


@task(name="download", task_run_name="download {key}", **IDEMPOTENT)
def download(
    home: Home,
    key: SeriesKey,
    exchange: Exchange,
    *,
    start_ms: int | None,
    end_ms: int | None,
    progress: Callable[[int, int], object],
) -> SeriesRef:
    """Bring one series of the lake up to date."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    with exchange.client(key.market) as client:
        report = sync_series(
            client,
            lake,
            ledger,
            key,
            archive=exchange.archive(key.market),
            start_ms=start_ms,
            end_ms=end_ms,
            progress=progress,
        )
    return _series_ref(lake, ledger, report)


def download_all(
    home: Home, keys: Sequence[SeriesKey], exchange: Exchange, *, start_ms: int | None, end_ms: int | None
) -> tuple[list[SeriesRef], list[tuple[SeriesKey, Exception]]]:
    """Every series, a few at a time; one that fails does not stop the others and is returned with its error.

    An interrupt ends the downloads under way at their next page, with what has come in the lake.
    """
    done: list[SeriesRef] = []
    failed: list[tuple[SeriesKey, Exception]] = []
    with (
        ingest_progress(len(keys), weight=exchange.weight) as progress,
        ThreadPoolExecutor(SERIES_AT_ONCE, thread_name_prefix="series") as pool,
    ):

        def one(key: SeriesKey) -> SeriesRef:
            with progress.of(str(key)) as report:
                return download(home, key, exchange, start_ms=start_ms, end_ms=end_ms, progress=report)

        try:
            # Prefect finds its flow run in the context.
            running = [(key, pool.submit(copy_context().run, one, key)) for key in keys]
            for key, future in running:
                try:
                    done.append(future.result())
                except (ExchangeError, StorageError) as error:
                    failed.append((key, error))
        except BaseException:
            progress.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done, failed


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


def _series_ref(lake: Lake, ledger: Ledger, report: SyncReport) -> SeriesRef:
    return SeriesRef(
        series=report.key.name,
        interval=report.key.interval.name,
        rows=report.rows,
        first_ms=report.first_ms,
        last_ms=report.last_ms,
        added=report.added,
        requests=report.requests,
        holes=len(ledger.holes(report.key, lake.open_times(report.key))),
        zips=report.zips,
        failed_parts=len(report.failed_parts),
    )
