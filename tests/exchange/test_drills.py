"""Reliability drills: whole downloads through storms of faults, bans, wrong clocks and sudden death.

However the exchange, its archive and this machine behave, a lake ends with the bytes of one that was never
disturbed, never holds a candle that is not closed, and no client ever causes a refusal.
"""

import hashlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from exchange.errors import Banned, ExchangeError
from exchange.governor import FOLDER
from exchange.replay import ArchiveStyle, Fault, PartFault, ReplayClock, ReplayExchange, synthetic_market
from exchange.replay.faults import FaultKind
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import Market, SeriesKey
from storage.verify import verify_series
from tests.support.ingesting import ingest, ingest_to_be_killed
from tests.support.shared_clock import SharedClock

MINUTE = 60_000
START = 1_714_348_800_000  # 2024-04-29 00:00 UTC
KEYS = [SeriesKey.parse(f"um:{name}USDT", "1m") for name in ("AAA", "BBB", "CCC")]
KEY = KEYS[0]
COUNT = 5 * 1440 + 130  # two days of April, two published days of May, one that is not, and a tail
END = START + COUNT * MINUTE
CANDLES = synthetic_market(KEYS, start_ms=START, count=COUNT + 1440, seed=11)
NOW = END + 1_000  # a second into the next candle
PROCESSES = multiprocessing.get_context("forkserver")  # a child of it has its imports done
PROCESSES.set_forkserver_preload(["tests.support.ingesting"])
STYLE = ArchiveStyle(month_delay_s=6 * 3600)  # so that April is a zip in May already
STEADY: dict[Market, int] = {"um": 1_000_000}  # so that kills need not wait for the weight of the runs before


@pytest.fixture(scope="module")
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange(CANDLES, clock=ReplayClock(NOW), weight_limits=STEADY, archive=STYLE) as served:
        yield served


@pytest.fixture(autouse=True)
def calm(exchange: ReplayExchange) -> Iterator[None]:
    exchange.forget_requests()
    yield
    exchange.faults, exchange.archive.style = (), STYLE
    exchange.clock.set(NOW)


def download(
    exchange: ReplayExchange,
    root: Path,
    keys: list[SeriesKey],
    *,
    archive: bool,
    timeout_s: float = 20.0,
    sleep: Callable[[float], None] = lambda seconds: None,
    **options: Any,
) -> None:
    """An ingest from an exchange, without waits unless told otherwise."""
    rest = replace(exchange.config, timeout_s=timeout_s)
    zips = replace(exchange.archive_config, timeout_s=timeout_s) if archive else None
    ingest(root, keys, rest, zips, sleep=sleep, **options)


def fingerprint(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.parquet"))
    }


def never_wrong(root: Path, keys: list[SeriesKey] = KEYS) -> None:
    """Whatever the lake holds is true, closed, once there, and in order: half a lake included."""
    for key in keys:
        if Lake(root).files(key):
            held = Lake(root).read(key)
            true = CANDLES[key].filter(pl.col("open_time").is_in(held["open_time"].implode()))
            assert held.equals(true)
            assert held["close_time"].dt.epoch("ms").max() < END


@pytest.fixture(scope="module")
def undisturbed(exchange: ReplayExchange, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """sha256 of every Parquet file of the three series, over REST without trouble."""
    root = tmp_path_factory.mktemp("undisturbed")
    download(exchange, root, KEYS, archive=False)
    assert [Lake(root).read(key).equals(CANDLES[key][:COUNT]) for key in KEYS] == [True] * 3
    return fingerprint(root)


def of(key: SeriesKey, files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if f"symbol={key.symbol}/" in name}


# Storms

STORM: tuple[FaultKind, ...] = (
    "429",
    "500",
    "503",
    "reset",
    "truncated",
    "short",
    "html403",
    "duplicate",
    "unordered",
)


@pytest.mark.parametrize("archive", [False, True], ids=["rest", "archive"])
@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_every_fault_at_once_ends_in_the_same_bytes(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, archive: bool, seed: int
) -> None:
    exchange.faults = [
        Fault("missing", "*/klines", every=3),
        *(Fault(kind, probability=0.06, seed=100 * seed + number) for number, kind in enumerate(STORM)),
    ]
    for _ in range(20):
        try:
            download(exchange, tmp_path, KEYS, archive=archive)
        except ExchangeError:
            never_wrong(tmp_path)
        else:
            break
    assert len({request.fault for request in exchange.requests} & set(STORM)) >= 4
    assert sum(request.fault == "missing" for request in exchange.requests) >= 3
    assert 418 not in {request.status for request in exchange.requests}
    exchange.faults = ()
    exchange.clock.advance(60 * MINUTE)  # rows that were left out again and again are asked for once more
    download(exchange, tmp_path, KEYS, archive=archive, end_ms=END)
    assert fingerprint(tmp_path) == undisturbed
    assert [verify_series(Lake(tmp_path), Ledger(tmp_path), key) for key in KEYS] == [[], [], []]


@pytest.mark.parametrize("kind", ["429", "503", "reset", "truncated"])
def test_a_burst_that_outlasts_every_attempt_costs_no_row(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, kind: str
) -> None:
    exchange.faults = [Fault(kind, on=tuple(range(12, 120)))]  # type: ignore[arg-type]
    with pytest.raises(ExchangeError):
        download(exchange, tmp_path, [KEY], archive=False)
    never_wrong(tmp_path)
    exchange.faults = ()
    download(exchange, tmp_path, [KEY], archive=True)
    assert fingerprint(tmp_path) == of(KEY, undisturbed)


@pytest.mark.parametrize("kind", ["unordered", "duplicate", "stale"])
@pytest.mark.parametrize("every", [1, 2])
def test_pages_with_rows_doubled_or_out_of_order_are_never_believed(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, kind: str, every: int
) -> None:
    exchange.faults = [Fault(kind, "*/klines", every=every, times=8 // every)]  # type: ignore[arg-type]
    for _ in range(5):
        try:
            download(exchange, tmp_path, [KEY], archive=False)
        except ExchangeError:
            never_wrong(tmp_path)
        else:
            break
    assert sum(request.fault == kind for request in exchange.requests) == 8 // every
    assert fingerprint(tmp_path) == of(KEY, undisturbed)


@pytest.mark.parametrize("kind", ["slow", "drip"])
def test_bodies_slower_than_the_timeout_are_asked_for_again(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, kind: str
) -> None:
    exchange.faults = [
        Fault(kind, "*/klines", every=3, delay_s=0.4),  # type: ignore[arg-type]
        Fault(kind, "/data/*", every=3, delay_s=0.4),  # type: ignore[arg-type]
    ]
    download(exchange, tmp_path, [KEY], archive=True, timeout_s=0.2)
    assert sum(request.fault == kind for request in exchange.requests) >= 4
    assert fingerprint(tmp_path) == of(KEY, undisturbed)


@pytest.mark.parametrize("kind", ["broken-zip", "wrong-checksum", "no-checksum", "unordered", "absent"])
def test_an_archive_whose_every_second_file_is_bad_changes_no_byte(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, kind: str
) -> None:
    bad = [PartFault(kind, path) for path in ("*-2024-04.zip", "*-??-?[1357].zip")]  # type: ignore[arg-type]
    exchange.archive.style = replace(STYLE, faults=tuple(bad))
    download(exchange, tmp_path, KEYS, archive=True)
    assert fingerprint(tmp_path) == undisturbed
    assert len(Ledger(tmp_path).failures(KEY)) >= (0 if kind == "absent" else 2)


# Limits and bans


Tight = tuple[ReplayExchange, SharedClock]


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Tight]:
    """An exchange that allows a weight of 25 a minute, by a clock that only its clients' sleep moves."""
    clock = SharedClock(tmp_path / "clock", start=1_800_000_000.0, budgets=tmp_path / FOLDER)
    limits: dict[Market, int] = {"um": 25}
    with ReplayExchange(CANDLES, clock=ReplayClock(NOW, wall=clock), weight_limits=limits) as served:
        yield served, clock


def test_three_series_at_once_under_a_tight_limit_are_never_refused(
    tight: Tight, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    served, clock = tight
    download(served, tmp_path, KEYS, archive=False, clock=clock, sleep=clock.sleep)
    assert {request.status for request in served.requests} == {200}
    assert sum(request.weight for request in served.requests) > 3 * 25
    assert fingerprint(tmp_path) == undisturbed


def test_a_storm_of_429_is_waited_out_by_all_and_becomes_no_ban(
    tight: Tight, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    served, clock = tight
    served.faults = [Fault("429", probability=0.2, seed=3, retry_after_s=30)]
    download(served, tmp_path, KEYS, archive=False, clock=clock, sleep=clock.sleep)
    statuses = [request.status for request in served.requests]
    assert statuses.count(429) == sum(request.fault == "429" for request in served.requests) > 3
    assert 418 not in statuses
    assert fingerprint(tmp_path) == undisturbed


@pytest.mark.parametrize("archive", [False, True], ids=["rest", "archive"])
def test_a_ban_is_obeyed_by_every_later_run_until_it_is_over(
    exchange: ReplayExchange, undisturbed: dict[str, str], tmp_path: Path, archive: bool
) -> None:
    now = [time.time()]
    exchange.faults = [Fault("418", "*/klines", on=(2,), times=1, retry_after_s=300)]
    with pytest.raises(Banned):
        download(exchange, tmp_path, [KEY], archive=archive, clock=lambda: now[0])
    never_wrong(tmp_path)
    under_way = len([one for one in exchange.requests if one.path.startswith("/fapi")])
    for _ in range(3):
        with pytest.raises(Banned):
            download(exchange, tmp_path, KEYS, archive=archive, clock=lambda: now[0])
    assert len([one for one in exchange.requests if one.path.startswith("/fapi")]) == under_way
    now[0] += 301
    download(exchange, tmp_path, KEYS, archive=archive, clock=lambda: now[0])
    assert fingerprint(tmp_path) == undisturbed


# Clocks


@pytest.mark.parametrize("skew_s", [-600, -61, 61, 600])
@pytest.mark.parametrize("archive", [False, True], ids=["rest", "archive"])
def test_a_wrong_local_clock_lets_no_open_candle_in_and_keeps_none_out(
    exchange: ReplayExchange,
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    skew_s: int,
    archive: bool,
) -> None:
    there = NOW / 1000 + skew_s  # the exchange's time, wrongly
    monkeypatch.setattr(time, "time", lambda: there)
    monkeypatch.setattr(time, "time_ns", lambda: int(there * 1e9))
    download(exchange, tmp_path, [KEY], archive=archive, clock=lambda: there)
    assert fingerprint(tmp_path) == of(KEY, undisturbed)


def test_a_local_clock_that_jumps_leads_to_no_ban(
    tight: Tight, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    served, clock = tight
    asked, skews = count(), (0.0, 240.0, -180.0, 90.0)

    def jumping() -> float:
        return clock() + skews[next(asked) // 40 % 4]

    download(served, tmp_path, KEYS, archive=False, clock=jumping, sleep=clock.sleep)
    assert 418 not in {request.status for request in served.requests}
    assert fingerprint(tmp_path) == undisturbed


# Sudden death


class Child:
    """A process that ingests all three series; `dies_at` as of ingest_to_be_killed."""

    def __init__(self, exchange: ReplayExchange, root: Path, dies_at: int = 0) -> None:
        exchange.clock.advance(60_000)  # the weight of the runs before is not this one's
        exchange.clock.set(NOW)
        self.told, theirs = multiprocessing.Pipe(duplex=False)
        archive = replace(exchange.archive_config, threads=2)
        arguments = (theirs, root, KEYS, exchange.config, archive, dies_at)
        self.process = PROCESSES.Process(target=ingest_to_be_killed, args=arguments)
        self.process.start()
        theirs.close()
        assert self.told.recv() == "begun"

    def end(self) -> int:
        """Its exit status, once it is over."""
        self.process.join(30)
        assert self.process.exitcode is not None
        return self.process.exitcode


@pytest.fixture(scope="module")
def whole(exchange: ReplayExchange, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, int]:
    """Seconds and changes of files that an ingest in a child takes when nobody kills it."""
    for attempt in range(2):  # the first pays for the zips that the exchange builds
        child = Child(exchange, tmp_path_factory.mktemp(f"whole{attempt}"))
        began = time.monotonic()
        changes = child.told.recv()
        seconds = time.monotonic() - began
        assert child.end() == 0
    return seconds, changes


def recovers(exchange: ReplayExchange, root: Path, undisturbed: dict[str, str]) -> None:
    never_wrong(root)
    download(exchange, root, KEYS, archive=True)
    assert fingerprint(root) == undisturbed
    assert [verify_series(Lake(root), Ledger(root), key) for key in KEYS] == [[], [], []]
    assert [path.name for path in root.rglob("*") if "tmp" in path.name and path.suffix == ".parquet"] == []


def test_twenty_ingests_killed_at_random_moments_end_in_the_same_bytes(
    exchange: ReplayExchange, undisturbed: dict[str, str], whole: tuple[float, int], tmp_path: Path
) -> None:
    moments = random.Random(20)
    killed, started = 0, 0
    while killed < 20:
        root = tmp_path / str(started)
        started += 1
        assert started <= 60, "the children end before they are killed"
        child = Child(exchange, root)
        time.sleep(moments.uniform(0, 0.9) * whole[0])
        child.process.kill()
        killed += child.end() == -signal.SIGKILL
        recovers(exchange, root, undisturbed)


def test_an_ingest_killed_between_any_two_changes_of_files_ends_in_the_same_bytes(
    exchange: ReplayExchange, undisturbed: dict[str, str], whole: tuple[float, int], tmp_path: Path
) -> None:
    changes = random.Random(21).sample(range(1, whole[1] * 8 // 10), 6)
    for at in changes:
        child = Child(exchange, tmp_path / str(at), dies_at=at)
        assert child.end() == -signal.SIGKILL
        recovers(exchange, tmp_path / str(at), undisturbed)


def test_an_ingest_killed_again_and_again_gets_there(
    exchange: ReplayExchange, undisturbed: dict[str, str], whole: tuple[float, int], tmp_path: Path
) -> None:
    for at in range(8, 8 + 4 * 9, 9):
        Child(exchange, tmp_path, dies_at=at).end()
        never_wrong(tmp_path)
    recovers(exchange, tmp_path, undisturbed)
