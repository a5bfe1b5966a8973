"""Syncing out of the archive and over REST, against a replay exchange that serves both."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from exchange.archive import ArchiveClient
from exchange.budget import LIMITS_PER_MINUTE, WeightBudget
from exchange.errors import GeoBlocked
from exchange.replay import (
    ArchiveStyle,
    Fault,
    PartFault,
    ReplayClock,
    ReplayExchange,
    ReplayRequest,
    synthetic_market,
)
from exchange.rest import RestClient
from exchange.sync import SyncReport, sync_series
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import SeriesKey
from storage.verify import verify_series

MINUTE, DAY = 60_000, 86_400_000
START = 1_711_411_200_000  # 2024-03-26 00:00 UTC
KEY = SeriesKey.parse("um:AAAUSDT", "1m")
COUNT = 50 * 1440 + 600  # until 2024-05-15 10:00
CANDLES = synthetic_market([KEY], start_ms=START, count=COUNT + 5 * 1440, seed=7)[KEY]
NOW = START + COUNT * MINUTE + 1_000
APRIL = "*/AAAUSDT-1m-2024-04.zip"


class World:
    """An exchange with its archive, a lake and what moves between them."""

    def __init__(self, exchange: ReplayExchange, root: Path) -> None:
        self.exchange, self.root = exchange, root
        self.lake, self.ledger = Lake(root), Ledger(root)

    def sync(self, *, archive: bool = True, **options: object) -> SyncReport:
        self.exchange.forget_requests()
        budget = WeightBudget(LIMITS_PER_MINUTE["um"], sleep=lambda seconds: None)
        zips = ArchiveClient(
            "um", replace(self.exchange.archive_config, threads=2), sleep=lambda seconds: None
        )
        config = replace(self.exchange.config, workers=1)
        with RestClient("um", config, budget=budget, sleep=lambda seconds: None) as client, zips:
            return sync_series(
                client, self.lake, self.ledger, KEY, archive=zips if archive else None, **options
            )  # type: ignore[arg-type]

    def faults(self, *faults: PartFault) -> None:
        self.exchange.archive.style = replace(self.exchange.archive.style, faults=faults)

    def asked(self, ending: str) -> list[ReplayRequest]:
        return [one for one in self.exchange.requests if one.path.endswith(ending)]

    def fingerprint(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*.parquet"))
        }

    def sources(self) -> set[str]:
        return {part.source.detail for part in self.ledger.parts(KEY) if part.source.kind == "archive"}


def serve(candles: pl.DataFrame = CANDLES, *, now_ms: int = NOW) -> ReplayExchange:
    return ReplayExchange({KEY: candles}, clock=ReplayClock(now_ms))


def until(end_ms: int, candles: pl.DataFrame = CANDLES) -> pl.DataFrame:
    return candles.filter(pl.col("open_time").dt.epoch("ms") < end_ms)


def without(first: int, last: int) -> pl.DataFrame:
    return pl.concat([CANDLES[:first], CANDLES[last:]])


@pytest.fixture(scope="module")
def exchange() -> Iterator[ReplayExchange]:
    with serve() as served:
        yield served


@pytest.fixture
def world(exchange: ReplayExchange, tmp_path: Path) -> Iterator[World]:
    exchange.clock.set(NOW)
    yield World(exchange, tmp_path / "lake")
    exchange.faults, exchange.archive.style = (), ArchiveStyle()


@pytest.fixture(scope="module")
def undisturbed(exchange: ReplayExchange, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """sha256 of every file after a sync over REST alone."""
    world = World(exchange, tmp_path_factory.mktemp("rest"))
    world.sync(archive=False)
    return world.fingerprint()


def test_months_and_days_come_as_zips_and_the_tail_over_rest_to_the_same_bytes(
    world: World, undisturbed: dict[str, str]
) -> None:
    report = world.sync()
    assert report.added == report.rows == COUNT
    assert_frame_equal(world.lake.read(KEY), until(START + COUNT * MINUTE), check_exact=True)
    assert world.fingerprint() == undisturbed
    assert report.zips == len(world.asked(".zip")) == 2 + 14  # March, April, 14 days of May
    pages = [one for one in world.asked("/klines") if one.rows > 1]
    assert sum(one.rows for one in pages) == 600
    assert report.requests < 8
    assert verify_series(world.lake, world.ledger, KEY) == []


def test_the_ledger_holds_the_sha256_of_every_zip(world: World) -> None:
    world.sync()
    parts = [part for part in world.ledger.parts(KEY) if part.source.kind == "archive"]
    assert "AAAUSDT-1m-2024-04.zip" in {part.source.detail for part in parts}
    for part in parts:
        folder = "daily" if part.source.detail.count("-") == 4 else "monthly"
        content = world.exchange.archive.content(
            f"data/futures/um/{folder}/klines/AAAUSDT/1m/{part.source.detail}"
        )
        assert content is not None
        assert part.source.sha256 == hashlib.sha256(content).hexdigest()


def test_nothing_new_costs_no_zip_no_listing_and_no_page(world: World) -> None:
    world.sync()
    report = world.sync()
    assert (report.up_to_date, report.zips) == (True, 0)
    assert [one.path for one in world.exchange.requests] == ["/fapi/v1/time"]


def test_a_few_new_candles_cost_one_page_and_no_listing(world: World) -> None:
    world.sync()
    world.exchange.clock.advance(10 * MINUTE)
    assert world.sync().added == 10
    assert [one.path for one in world.exchange.requests] == ["/fapi/v1/time", "/fapi/v1/klines"]


def test_extending_backwards_fetches_only_the_new_part(world: World, undisturbed: dict[str, str]) -> None:
    world.sync(start_ms=START + 10 * DAY)  # 2024-04-05
    assert world.asked("-2024-03.zip") == []
    world.sync()
    zips = {one.path.rpartition("/")[2] for one in world.asked(".zip")}
    assert zips == {"AAAUSDT-1m-2024-03.zip", "AAAUSDT-1m-2024-04.zip"}
    assert world.fingerprint() == undisturbed


@pytest.mark.parametrize("kind", ["absent", "no-checksum", "wrong-checksum", "broken-zip"])
def test_a_month_that_fails_comes_from_its_days_and_the_ledger_says_why(
    world: World, undisturbed: dict[str, str], kind: str
) -> None:
    world.faults(PartFault(kind, APRIL))  # type: ignore[arg-type]
    report = world.sync()
    assert world.fingerprint() == undisturbed
    assert len([one for one in world.sources() if "2024-04-" in one]) == 30
    if kind == "absent":  # not listed, hence not tried
        assert report.failed_parts == ()
    else:
        assert report.failed_parts == ("AAAUSDT-1m-2024-04.zip",)
        (failure,) = world.ledger.failures(KEY)
        assert failure.part == "AAAUSDT-1m-2024-04.zip"
        assert "expected" in failure.reason


def test_a_month_and_a_day_that_fail_come_over_rest(world: World, undisturbed: dict[str, str]) -> None:
    world.faults(PartFault("broken-zip", APRIL), PartFault("wrong-checksum", "*-2024-04-17.zip"))
    assert set(world.sync().failed_parts) == {"AAAUSDT-1m-2024-04.zip", "AAAUSDT-1m-2024-04-17.zip"}
    assert world.fingerprint() == undisturbed
    seventeenth = START + 22 * DAY
    pages = [one for one in world.asked("/klines") if int(one.params["startTime"]) < seventeenth + DAY]
    assert sum(one.rows for one in pages if one.rows > 1) == 1440


def test_an_archive_that_lists_nothing_leaves_everything_to_rest(
    world: World, undisturbed: dict[str, str]
) -> None:
    world.faults(PartFault("absent"))
    assert world.sync().zips == 0
    assert world.fingerprint() == undisturbed


def test_a_listing_that_fails_is_replaced_by_the_calendar(world: World, undisturbed: dict[str, str]) -> None:
    world.exchange.faults = [Fault("500", "/")]
    report = world.sync()
    assert report.zips == 2 + 12  # the last two days are too young to be promised
    assert world.fingerprint() == undisturbed


def test_a_day_that_a_month_lacks_comes_from_its_own_file_and_rest_is_asked(
    world: World, undisturbed: dict[str, str]
) -> None:
    day = START + 20 * DAY
    world.faults(PartFault("lacks-day", APRIL, day="2024-04-15"))
    report = world.sync()
    assert world.fingerprint() == undisturbed
    assert "AAAUSDT-1m-2024-04-15.zip" in world.sources()
    assert report.failed_parts == ("AAAUSDT-1m-2024-04.zip",)
    assert "2024-04-15" in world.ledger.failures(KEY)[0].reason
    judged = [one for one in world.asked("/klines") if day <= int(one.params["startTime"]) < day + DAY]
    assert sum(one.rows for one in judged) == 1440


def test_rest_has_the_last_word_where_a_month_and_its_day_differ(
    world: World, undisturbed: dict[str, str]
) -> None:
    world.faults(
        PartFault("lacks-day", APRIL, day="2024-04-15"), PartFault("altered", "*/AAAUSDT-1m-2024-04-15.zip")
    )
    world.sync()
    assert world.fingerprint() == undisturbed


def test_a_day_that_no_file_has_comes_over_rest(world: World, undisturbed: dict[str, str]) -> None:
    world.faults(
        PartFault("lacks-day", APRIL, day="2024-04-15"), PartFault("absent", "*/AAAUSDT-1m-2024-04-15.zip")
    )
    world.sync()
    assert world.fingerprint() == undisturbed


def test_an_outage_in_a_month_is_confirmed_over_rest_and_then_known(tmp_path: Path) -> None:
    first = 20 * 1440 + 100
    with serve(without(first, first + 90)) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        outage = (START + first * MINUTE, START + (first + 90) * MINUTE)
        holes = world.ledger.holes(KEY, world.lake.open_times(KEY))
        assert [(hole.start_ms, hole.end_ms, hole.status) for hole in holes] == [(*outage, "outage")]
        assert [int(one.params["startTime"]) for one in world.asked("/klines") if one.rows == 0] == [
            outage[0]
        ]
        assert world.ledger.failures(KEY) == []
        world.sync()
        assert [one.path for one in world.exchange.requests] == ["/fapi/v1/time"]


def test_a_deleted_month_comes_back_as_its_zip(world: World, undisturbed: dict[str, str]) -> None:
    world.sync()
    world.lake.files(KEY)["2024-04"].unlink()
    assert world.sync().zips == 1
    assert world.fingerprint() == undisturbed


def test_candles_that_the_lake_has_are_never_replaced_by_a_month(world: World) -> None:
    world.sync(archive=False, end_ms=START + 15 * DAY)
    before = world.lake.read(KEY)
    world.faults(PartFault("altered"))
    world.sync()
    assert_frame_equal(world.lake.read(KEY, None, START + 15 * DAY), before, check_exact=True)


def test_a_location_that_rest_refuses_is_served_by_the_archive_alone(world: World) -> None:
    world.exchange.faults = [Fault("451", "/fapi/*")]
    with pytest.raises(GeoBlocked):
        world.sync(archive=False)
    report = world.sync()
    assert report.zips == 2 + 14
    assert_frame_equal(world.lake.read(KEY), until(START + 50 * DAY), check_exact=True)
    world.exchange.faults = []
    assert world.sync().added == 600


def test_a_series_that_ends_is_shown_as_stale_until_it_goes_on(tmp_path: Path) -> None:
    with serve(CANDLES[:5_000]) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        tail = world.ledger.tail(KEY)
        assert tail is not None
        assert (tail.start_ms, tail.end_ms, tail.status) == (START + 5_000 * MINUTE, NOW - 1_000, "stale")
    with serve() as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        assert world.ledger.tail(KEY) is None


def test_progress_rises_to_the_whole(world: World) -> None:
    told: list[tuple[int, int]] = []
    world.sync(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (COUNT, COUNT)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) >= 3 + 2  # a month at a time, then pages
