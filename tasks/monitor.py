"""Series of the lake, kept up to date while they trade."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task

from exchange.connect import Exchange
from exchange.monitor import Monitor, MonitorConfig, interruptible
from exchange.monitor_state import MonitorState
from exchange.replay.source import replay_exchange
from exchange.rest import ExchangeConfig
from exchange.stream import StreamConfig
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey
from tasks.policies import IDEMPOTENT

__all__ = ["monitor", "rehearsed"]

REHEARSED_CANDLES = 1_000  # of the data's end, as if they were happening now

logger = logging.getLogger(__name__)


@task(name="monitor", **IDEMPOTENT)
def monitor(
    home: Home,
    keys: Sequence[SeriesKey],
    exchange: ExchangeConfig,
    stream: StreamConfig,
    config: MonitorConfig,
    *,
    on_update: Callable[[MonitorState], object],
    stop: threading.Event | None = None,
    duration_s: float | None = None,
    csv: Path | None = None,
    json: Path | None = None,
) -> MonitorState:
    """Watch `keys` until `stop` is set or the time is over."""
    stop = stop or threading.Event()
    shared = Exchange(home.lake, exchange, sleep=interruptible(stop))
    with shared.clients(key.market for key in keys) as clients:
        return Monitor(
            keys,
            lake=Lake(home.lake),
            ledger=Ledger(home.lake),
            clients=clients,
            stop=stop,
            config=config,
            stream=stream,
            csv=csv,
            json=json,
            on_update=on_update,
        ).run(duration_s=duration_s)


@contextmanager
def rehearsed(
    replay: str, keys: Sequence[SeriesKey], exchange: ExchangeConfig, stream: StreamConfig, *, speed: float
) -> Iterator[tuple[ExchangeConfig, StreamConfig]]:
    """Where to ask and to listen: Binance as configured, or a replay exchange in the midst of its data.

    Its clock starts 1,000 candles before the data's end and runs at `speed` exchange seconds per second.
    """
    if not replay:
        yield exchange, stream
        return
    with replay_exchange(replay, keys, seed=0, speed=speed, ahead=REHEARSED_CANDLES) as server:
        logger.info(
            "Candles come from a replay exchange (%s) at %g times real speed, not from Binance.",
            replay,
            speed,
        )
        here = server.stream_config
        urls: dict[str, Any] = {"spot_stream_url": here.spot_stream_url, "um_stream_url": here.um_stream_url}
        yield server.config, replace(stream, **urls)
