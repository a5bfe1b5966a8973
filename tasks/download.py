"""Candles from the exchange, or from files, into the lake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

from prefect import task

from exchange.connect import Exchange
from exchange.errors import ExchangeError
from exchange.sync import SyncReport, sync_series
from storage.candle_files import read_candles, write_candles
from storage.errors import CandleError, StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger, Source
from storage.schema import SeriesKey, utc_text
from tasks.policies import IDEMPOTENT
from tasks.progress import ingest_progress
from tasks.refs import IngestRef, SeriesRef

__all__ = [
    "IncompleteIngest",
    "download",
    "download_all",
    "export_file",
    "import_file",
]

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


@task(name="import", task_run_name="import {path}", **IDEMPOTENT)
def import_file(home: Home, path: Path, key: SeriesKey) -> SeriesRef:
    """Validate a CSV, JSON or Parquet file and upsert it into the lake."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    candles = read_candles(path, key.interval)
    with home.writing("import"):
        result = lake.upsert(key, candles, source=Source(kind="import", detail=path.name, sha256=None))
    span = lake.span(key)
    assert span is not None, "an import of nothing is refused"
    return SeriesRef(
        series=key.name,
        interval=key.interval.name,
        rows=span.rows,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        added=result.added,
        requests=0,
        holes=len(ledger.holes(key, lake.open_times(key))),
    )


@task(name="export", task_run_name="export {path}", **IDEMPOTENT)
def export_file(home: Home, path: Path, key: SeriesKey, *, start_ms: int | None, end_ms: int | None) -> int:
    """Write candles of the lake to a CSV, JSON or Parquet file; returns how many."""
    lake = Lake(home.lake)
    candles = lake.read(key, start_ms, end_ms)
    if candles.is_empty():
        span = lake.span(key)
        assert span is not None, "a series that the lake does not have is refused above"
        raise CandleError(
            f"Expected candles of {key} between --start and --end, found none; the lake has them from "
            f"{utc_text(span.first_ms)} to {utc_text(span.last_ms)}, choose dates within."
        )
    write_candles(candles, path)
    return len(candles)


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
