"""Candles from the exchange into the lake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from prefect import task

from exchange.connect import Exchange
from exchange.errors import ExchangeError
from exchange.sync import SyncReport, sync_series
from storage.errors import StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey
from tasks.policies import IDEMPOTENT
from tasks.progress import ingest_progress
from tasks.refs import IngestRef, SeriesRef

__all__ = ["IncompleteIngest", "download", "download_all"]

SERIES_AT_ONCE = 4  # each keeps the network and a core busy at times


class IncompleteIngest(ExchangeError):  # noqa: N818  # it says what happened
    """Some series could not be brought up to date; the others are in the lake."""

    def __init__(self, message: str, ingested: IngestRef) -> None:
        super().__init__(message)
        self.ingested = ingested


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
