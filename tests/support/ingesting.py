"""An ingest of several series at once, in this process or in one that dies under it."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from exchange.archive import ArchiveClient, ArchiveConfig
from exchange.config import ExchangeConfig
from exchange.governor import FOLDER, Governor
from exchange.rest import RestClient
from exchange.sync import sync_series
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import SeriesKey

CHANGES = ("os.rename", "os.remove", "os.mkdir")


def ingest(
    root: Path,
    keys: Sequence[SeriesKey],
    rest: ExchangeConfig,
    archive: ArchiveConfig | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
    end_ms: int | None = None,
) -> None:
    """What `kronos ingest` does with USD-M series: a thread and a client each, one governor, one archive."""
    governor = Governor(root / FOLDER, "um", rest.um_url, clock=clock, sleep=sleep)
    fetcher = ArchiveClient("um", archive, sleep=sleep) if archive else None

    def one(key: SeriesKey) -> None:
        with RestClient("um", rest, budget=governor, sleep=sleep) as client:
            sync_series(client, Lake(root), Ledger(root), key, archive=fetcher, end_ms=end_ms)

    with ThreadPoolExecutor(len(keys)) as pool:
        for done in [pool.submit(one, key) for key in keys]:
            done.result()
    if fetcher is not None:
        fetcher.close()


def ingest_to_be_killed(
    told: Connection,
    root: Path,
    keys: Sequence[SeriesKey],
    rest: ExchangeConfig,
    archive: ArchiveConfig,
    dies_at: int,
) -> None:
    """In a process of its own: tells when it begins, and how many files it has changed when it ends well.

    Killed by its parent, or by itself before it changes a file for the `dies_at`-th time (0: never).
    """
    changes = count(1)
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES or (event == "open" and "w" in str(arguments[1])):
            seen = next(changes)
            if seen == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    told.send("begun")
    ingest(root, keys, rest, archive)
    told.send(seen)
