"""Candles from the exchange, or from files, into the lake."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from prefect import task

from exchange.governor import governor_of
from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from exchange.rest import ExchangeConfig, RestClient
from exchange.sync import sync_series
from storage.errors import CandleError
from storage.files import read_candles, read_folder
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger, Source
from storage.schema import SeriesKey
from tasks.policies import IDEMPOTENT
from tasks.progress import progress_bar
from tasks.refs import SeriesRef

__all__ = ["connected", "download", "import_file", "replay_exchange"]

logger = logging.getLogger(__name__)

SYNTHETIC_START_MS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000)
SYNTHETIC_CANDLES = 6_000  # 250 days of 1h: enough for every split of the demo


@task(name="download", task_run_name="download {key}", **IDEMPOTENT)
def download(
    home: Home, key: SeriesKey, exchange: ExchangeConfig, *, start_ms: int | None, end_ms: int | None
) -> SeriesRef:
    """Bring one series of the lake up to date."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    budget = governor_of(home.lake, key.market, exchange.url_of(key.market))
    client = RestClient(key.market, exchange, budget=budget)
    with progress_bar(f"download {key}") as progress, client:
        report = sync_series(
            client,
            lake,
            ledger,
            key,
            start_ms=start_ms,
            end_ms=end_ms,
            progress=progress,
        )
    return _series_ref(lake, ledger, key, added=report.added, requests=report.requests)


@task(name="import", task_run_name="import {path}", **IDEMPOTENT)
def import_file(home: Home, path: Path, key: SeriesKey) -> SeriesRef:
    """Validate a CSV, JSON or Parquet file and upsert it into the lake."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    candles = read_candles(path, key.interval)
    result = lake.upsert(key, candles, source=Source(kind="import", detail=path.name, sha256=None))
    return _series_ref(lake, ledger, key, added=result.added, requests=0)


@contextmanager
def connected(
    replay: str, keys: Sequence[SeriesKey], exchange: ExchangeConfig, seed: int
) -> Iterator[ExchangeConfig]:
    """The exchange to talk to: Binance as configured, or a replay exchange that lives as long as the block."""
    if not replay:
        yield exchange
        return
    with replay_exchange(replay, keys, seed=seed) as server:
        logger.info("Candles come from a replay exchange (%s), not from Binance.", replay)
        yield server.config


def replay_exchange(
    source: str, keys: Sequence[SeriesKey], *, seed: int, port: int = 0, speed: float = 0.0
) -> ReplayExchange:
    """A replay exchange over `keys` out of a folder of klines or, for 'synthetic', of a seeded synthetic market.

    Its clock starts half an interval after the last candle of the data closes: that candle counts as closed, and
    the next one would be forming. Raises StorageError when the folder lacks one of `keys`.
    """
    candles = _synthetic(keys, seed) if source == "synthetic" else _klines(Path(source), keys)
    last_ms, interval = max(
        (int(frame["open_time"].dt.epoch("ms")[-1]), key.interval) for key, frame in candles.items()
    )
    end_ms = interval.next(last_ms)
    clock = ReplayClock(end_ms + (interval.next(end_ms) - end_ms) // 2, speed=speed)
    return ReplayExchange(candles, clock=clock, port=port)


def _synthetic(keys: Sequence[SeriesKey], seed: int) -> dict[SeriesKey, pl.DataFrame]:
    return dict(synthetic_market(keys, start_ms=SYNTHETIC_START_MS, count=SYNTHETIC_CANDLES, seed=seed))


def _klines(folder: Path, keys: Sequence[SeriesKey]) -> dict[SeriesKey, pl.DataFrame]:
    candles = read_folder(folder, keys[0].interval)
    missing = [key.name for key in keys if key not in candles]
    if missing:
        found = ", ".join(key.name for key in candles)
        raise CandleError(
            f"Expected klines of {', '.join(missing)} at {keys[0].interval} in {folder}, found {found}; add files such "
            f"as um_DOGEUSDT_1h.parquet, or choose other series with --series."
        )
    return {key: candles[key] for key in keys}


def _series_ref(lake: Lake, ledger: Ledger, key: SeriesKey, *, added: int, requests: int) -> SeriesRef:
    span = lake.span(key)
    assert span is not None, "an ingest that stored nothing raises"
    return SeriesRef(
        series=key.name,
        interval=key.interval.name,
        rows=span.rows,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        added=added,
        requests=requests,
        holes=len(ledger.holes(key, lake.read(key))),
    )
