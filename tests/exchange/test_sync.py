"""Syncing a lake with the replay exchange over real HTTP: exact, incremental, and safe to interrupt."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from exchange.budget import LIMITS_PER_MINUTE, WeightBudget
from exchange.errors import BadSymbol, Banned, ExchangeError, Malformed, NoCandles, RateLimited, Unreachable
from exchange.replay import Fault, ReplayClock, ReplayExchange, ReplayRequest, synthetic_market
from exchange.rest import RestClient
from exchange.sync import SyncReport, sync_series
from storage.candle_files import read_candles
from storage.errors import LakeError, LockedError
from storage.interval import Interval
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import SeriesKey

HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_700_006_400_000  # 2023-11-15 00:00 UTC
COUNT = 3_000  # seven um pages, five months
KEY = SeriesKey.parse("um:AAAUSDT", "1h")
CANDLES = synthetic_market([KEY], start_ms=START, count=COUNT + 200, seed=7)[KEY]
NOW = START + COUNT * HOUR + 60_000  # a minute into candle COUNT


class World:
    """An exchange, a lake and what moves between them."""

    def __init__(self, exchange: ReplayExchange, root: Path) -> None:
        self.exchange = exchange
        self.lake = Lake(root)
        self.ledger = Ledger(root)
        self.root = root
        self.seconds = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    def sync(self, key: SeriesKey = KEY, **options: object) -> SyncReport:
        budget = WeightBudget(LIMITS_PER_MINUTE[key.market], clock=lambda: self.seconds, sleep=self.sleep)
        self.exchange.forget_requests()
        config = replace(self.exchange.config, workers=1)  # so that faults meet requests by their number
        with RestClient(key.market, config, budget=budget, sleep=self.sleep) as client:
            return sync_series(client, self.lake, self.ledger, key, **options)  # type: ignore[arg-type]

    def klines(self) -> list[ReplayRequest]:
        return [request for request in self.exchange.requests if request.path.endswith("/klines")]

    def asked_before(self, open_ms: int) -> list[ReplayRequest]:
        return [request for request in self.klines() if int(request.params["startTime"]) < open_ms]

    def fingerprint(self) -> dict[str, str]:
        files = sorted(self.root.rglob("*.parquet"))
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    def month(self, name: str) -> Path:
        return next(self.root.rglob(f"month={name}/candles.parquet"))


def ms(candles: pl.DataFrame) -> pl.Series:
    return candles["open_time"].dt.epoch("ms")


def until(end_ms: int, candles: pl.DataFrame = CANDLES) -> pl.DataFrame:
    return candles.filter(pl.col("open_time").dt.epoch("ms") < end_ms)


def without(first: int, last: int) -> pl.DataFrame:
    """The candles less the rows [first, last)."""
    return pl.concat([CANDLES[:first], CANDLES[last:]])


def serve(candles: pl.DataFrame, now_ms: int = NOW, key: SeriesKey = KEY) -> ReplayExchange:
    return ReplayExchange({key: candles}, clock=ReplayClock(now_ms))


def holes_of(world: World) -> list[tuple[int, int, str]]:
    """The holes of the lake as the ledger judges them."""
    holes = world.ledger.holes(KEY, world.lake.read(KEY))
    return [(hole.start_ms, hole.end_ms, hole.status) for hole in holes]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serve(CANDLES) as exchange:
        yield World(exchange, tmp_path / "lake")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """sha256 of every Parquet file after one sync without trouble."""
    with serve(CANDLES) as exchange:
        world = World(exchange, tmp_path_factory.mktemp("undisturbed"))
        world.sync()
        return world.fingerprint()


def test_the_first_sync_brings_every_closed_candle_since_the_listing_exactly(world: World) -> None:
    report = world.sync()
    assert_frame_equal(world.lake.read(KEY), until(START + COUNT * HOUR), check_exact=True)
    assert (report.added, report.rows, report.up_to_date) == (COUNT, COUNT, False)
    assert (report.first_ms, report.last_ms) == (START, START + (COUNT - 1) * HOUR)
    assert report.requests == len(world.exchange.requests)
    assert len(world.klines()) == 1 + -(-COUNT // 499)  # the listing, then full pages


def test_a_second_sync_with_nothing_new_asks_no_page_and_changes_no_byte(world: World) -> None:
    world.sync()
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*.parquet")}
    report = world.sync()
    assert (report.added, report.up_to_date, report.rows) == (0, True, COUNT)
    assert world.klines() == []
    assert {path: path.stat().st_mtime_ns for path in world.root.rglob("*.parquet")} == before


@pytest.mark.parametrize("new", [1, 3, 150])
def test_new_candles_are_the_only_ones_asked_for(world: World, new: int) -> None:
    world.sync()
    world.exchange.clock.advance(new * HOUR)
    report = world.sync()
    assert report.added == new
    assert [(int(one.params["startTime"]), one.rows) for one in world.klines()] == [
        (START + COUNT * HOUR, new)
    ]
    assert_frame_equal(world.lake.read(KEY), until(START + (COUNT + new) * HOUR), check_exact=True)


@pytest.mark.parametrize("late_ms", [0, 1, HOUR - 1])
def test_the_forming_candle_never_enters(world: World, late_ms: int) -> None:
    open_ms = START + 50 * HOUR
    world.exchange.clock.set(open_ms + late_ms)
    world.sync()
    assert ms(world.lake.read(KEY))[-1] == open_ms - HOUR
    world.exchange.clock.set(open_ms + HOUR)
    world.sync()
    assert_frame_equal(world.lake.read(KEY), until(open_ms + HOUR), check_exact=True)


def test_extending_the_start_backwards_fetches_only_the_new_part(
    world: World, undisturbed: dict[str, str]
) -> None:
    middle = START + 1_700 * HOUR
    world.sync(start_ms=middle)
    world.sync(start_ms=START)
    assert all(int(request.params["endTime"]) < middle for request in world.klines())
    assert sum(request.rows for request in world.klines()) == 1_700
    assert world.fingerprint() == undisturbed


def test_extending_to_the_listing_asks_where_it_is_and_then_only_for_the_new_part(world: World) -> None:
    middle = START + 1_700 * HOUR
    world.sync(start_ms=middle)
    world.sync()
    listing, *pages = world.klines()
    assert (listing.params["startTime"], listing.rows) == ("0", 1)
    assert sum(request.rows for request in pages) == 1_700
    world.sync()
    assert world.klines() == []


def test_a_range_brings_exactly_the_candles_that_open_within_it(world: World) -> None:
    world.sync(start_ms=START + 10 * HOUR, end_ms=START + 20 * HOUR)
    assert_frame_equal(world.lake.read(KEY), CANDLES[10:20], check_exact=True)
    world.sync(start_ms=START + 5 * HOUR + 1, end_ms=START + 25 * HOUR + 1)
    assert_frame_equal(world.lake.read(KEY), CANDLES[6:26], check_exact=True)


def test_two_ranges_apart_leave_what_lies_between_to_a_later_sync(
    world: World, undisturbed: dict[str, str]
) -> None:
    world.sync(start_ms=START + 2_000 * HOUR)
    world.sync(start_ms=START, end_ms=START + 1_000 * HOUR)
    assert sum(request.rows for request in world.klines()) == 1_000
    world.sync(start_ms=START)
    assert sum(request.rows for request in world.klines()) == 1_000
    assert world.fingerprint() == undisturbed


@pytest.mark.parametrize("kind", ["reset", "500", "503", "truncated", "short", "duplicate", "429", "html403"])
def test_a_fault_now_and_then_changes_nothing_in_the_lake(
    world: World, undisturbed: dict[str, str], kind: str
) -> None:
    world.exchange.faults = [Fault(kind, "*", every=3)]  # type: ignore[arg-type]
    report = world.sync()
    assert report.added == COUNT
    assert sum(request.fault is not None for request in world.exchange.requests) >= 4
    assert world.fingerprint() == undisturbed


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset", Unreachable),
        ("500", Unreachable),
        ("truncated", Malformed),
        ("duplicate", Malformed),
        ("429", RateLimited),
    ],
)
def test_a_cut_exchange_leaves_the_pages_that_came_and_the_next_sync_goes_on(
    world: World, undisturbed: dict[str, str], kind: str, error: type[ExchangeError]
) -> None:
    attempts = world.exchange.config.attempts
    world.exchange.faults = [Fault(kind, "*/klines", on=tuple(range(4, 4 + attempts)))]  # type: ignore[arg-type]
    with pytest.raises(error):
        world.sync()
    assert_frame_equal(world.lake.read(KEY), CANDLES[: 2 * 499], check_exact=True)  # listing, page, page, cut
    world.exchange.faults = []
    world.sync()
    assert world.asked_before(START + 2 * 499 * HOUR) == []
    assert world.fingerprint() == undisturbed


def test_a_ban_stops_at_once_and_keeps_what_came(world: World) -> None:
    world.exchange.faults = [Fault("418", "*/klines", on=(3,), retry_after_s=300)]
    with pytest.raises(Banned, match="banned until"):
        world.sync()
    assert len(world.klines()) == 3
    assert world.slept == []
    assert len(world.lake.read(KEY)) == 499


def test_an_extension_that_was_cut_leaves_no_hole_for_good(world: World, undisturbed: dict[str, str]) -> None:
    world.sync(start_ms=START + 2_000 * HOUR)
    world.exchange.faults = [Fault("500", "*/klines", on=tuple(range(3, 9)))]
    with pytest.raises(Unreachable):
        world.sync(start_ms=START)
    assert holes_of(world) == [(START + 998 * HOUR, START + 2_000 * HOUR, "open")]
    world.exchange.faults = []
    world.sync(start_ms=START)
    assert sum(request.rows for request in world.klines()) == 1_002
    assert world.fingerprint() == undisturbed
    assert [mark.status for mark in world.ledger.marks(KEY)] == ["repaired"]


KILLED = """
import sys
from pathlib import Path
from exchange.rest import ExchangeConfig, RestClient
from exchange.sync import sync_series
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import SeriesKey
import exchange.sync
exchange.sync.FLUSH_PAGES = 1
root = Path(sys.argv[2])
config = ExchangeConfig(um_url=sys.argv[1])
sync_series(RestClient("um", config), Lake(root), Ledger(root), SeriesKey.parse("um:AAAUSDT", "1h"))
"""


def test_a_killed_process_is_continued_to_the_same_bytes(world: World, undisturbed: dict[str, str]) -> None:
    world.exchange.faults = [Fault("slow", "*/klines", delay_s=0.2)]
    command = [sys.executable, "-c", KILLED, world.exchange.url, str(world.root)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while world.lake.span(KEY) is None and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    rows = len(world.lake.read(KEY))
    assert 0 < rows < COUNT
    world.exchange.faults = []
    report = world.sync()
    assert report.added == COUNT - rows
    assert world.fingerprint() == undisturbed


def test_retry_after_is_waited_for(world: World) -> None:
    world.exchange.faults = [Fault("429", "*/klines", on=(3,), retry_after_s=47)]
    world.sync()
    assert sum(world.slept) >= 47
    assert [request.status for request in world.klines()].count(429) == 1


def test_the_weight_limit_is_never_exceeded(tmp_path: Path) -> None:
    clock = ReplayClock(NOW)
    with ReplayExchange({KEY: CANDLES}, clock=clock, weight_limits={"um": 10}) as exchange:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock.advance(round(seconds * 1000) + 1)

        budget = WeightBudget(10, clock=lambda: clock.limits_ms / 1000, sleep=sleep)
        with RestClient("um", exchange.config, budget=budget, sleep=sleep) as client:
            sync_series(client, Lake(tmp_path), Ledger(tmp_path), KEY)
        assert {request.status for request in exchange.requests} == {200}
    assert len(slept) >= 1
    assert_frame_equal(Lake(tmp_path).read(KEY), until(START + COUNT * HOUR), check_exact=True)


def test_an_outage_is_asked_for_once_more_by_itself_and_then_known(tmp_path: Path) -> None:
    with serve(without(700, 730)) as exchange:
        world = World(exchange, tmp_path)
        report = world.sync()
        assert report.rows == COUNT - 30
        outage = (START + 700 * HOUR, START + 730 * HOUR)
        assert [int(one.params["startTime"]) for one in world.klines() if one.rows == 0] == [outage[0]]
        assert holes_of(world) == [(*outage, "outage")]
        world.sync()
        assert world.klines() == []


def test_a_later_ingest_asks_for_an_outage_again_and_then_it_is_final(tmp_path: Path) -> None:
    outage = (START + 700 * HOUR, START + 730 * HOUR)

    def known() -> list[tuple[int, int, int, int]]:
        marks = world.ledger.marks(KEY)
        return [(one.start_ms, one.end_ms, one.attempts, one.asked_ms) for one in marks if one.start_ms]

    with serve(without(700, 730)) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        assert known() == [(*outage, 1, NOW)]
        exchange.clock.advance(HOUR - 1)
        world.sync()
        assert world.asked_before(outage[1]) == []  # it is too early
        exchange.clock.advance(1)
        world.sync()
        assert [int(one.params["startTime"]) for one in world.asked_before(outage[1])] == [outage[0]]
        assert known() == [(*outage, 2, NOW + HOUR)]
        exchange.clock.advance(DAY)
        world.sync()
        assert world.asked_before(outage[1]) == []
        assert holes_of(world) == [(*outage, "outage")]


def test_a_row_left_out_of_a_page_and_again_when_asked_for_alone_comes_with_a_later_ingest(
    world: World, undisturbed: dict[str, str]
) -> None:
    world.exchange.faults = [
        Fault("missing", "*/klines", on=(4, 9))
    ]  # a page and, when all are there, its row
    world.sync()
    ((start_ms, end_ms, status),) = holes_of(world)
    assert (end_ms - start_ms, status) == (HOUR, "outage")
    world.sync()
    assert len(holes_of(world)) == 1
    world.exchange.clock.advance(HOUR)
    assert world.sync(end_ms=START + COUNT * HOUR).added == 1
    assert holes_of(world) == []
    assert world.fingerprint() == undisturbed
    assert [mark.status for mark in world.ledger.marks(KEY) if mark.start_ms] == ["repaired"]


def test_outages_of_an_older_ledger_are_confirmed_again(tmp_path: Path) -> None:
    with serve(without(700, 730)) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        path = next(tmp_path.rglob("ledger.json"))
        content = json.loads(path.read_text())
        for hole in content["holes"]:
            del hole["attempts"], hole["asked_ms"]
        path.write_text(json.dumps(content))
        world.sync()
        assert len(world.klines()) == 1
        assert world.ledger.marks(KEY)[-1].attempts == 1


def test_an_outage_met_in_two_parts_is_one_outage(tmp_path: Path) -> None:
    with serve(without(700, 730)) as exchange:
        world = World(exchange, tmp_path)
        world.sync(start_ms=START + 730 * HOUR)
        world.sync(start_ms=START, end_ms=START + 715 * HOUR)
        world.sync(start_ms=START)
        assert holes_of(world) == [(START + 700 * HOUR, START + 730 * HOUR, "outage")]


def test_a_row_left_out_of_a_page_is_found_and_fetched(world: World, undisturbed: dict[str, str]) -> None:
    world.exchange.faults = [Fault("missing", "*/klines", on=(2, 4, 5))]
    report = world.sync()
    assert report.added == COUNT
    assert holes_of(world) == []
    assert world.fingerprint() == undisturbed


def test_a_hole_of_the_last_day_stays_open_until_it_is_settled(tmp_path: Path) -> None:
    with serve(without(COUNT - 5, COUNT - 3)) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        assert [status for *_, status in holes_of(world)] == ["open"]
        world.sync()
        assert len(world.klines()) == 1
        exchange.clock.advance(DAY)
        world.sync()
        assert [status for *_, status in holes_of(world)] == ["outage"]


def test_candles_that_the_exchange_adds_later_repair_an_open_hole(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with serve(without(COUNT - 5, COUNT - 3)) as exchange:
        World(exchange, tmp_path).sync()
    with serve(CANDLES) as exchange:
        world = World(exchange, tmp_path)
        assert world.sync().added == 2
    assert world.fingerprint() == undisturbed
    assert [mark.status for mark in world.ledger.marks(KEY) if mark.start_ms] == ["repaired"]


def test_a_start_before_the_listing_is_asked_once(world: World) -> None:
    early = START - 90 * DAY
    world.sync(start_ms=early)
    assert world.sync(start_ms=early).up_to_date
    assert world.klines() == []
    assert world.sync().up_to_date  # the listing itself was not known yet
    assert len(world.klines()) == 1


@pytest.mark.parametrize("month", ["2023-11", "2024-01", "2024-03"])
def test_a_deleted_month_is_fetched_again(world: World, undisturbed: dict[str, str], month: str) -> None:
    world.sync()
    rows = pl.read_parquet(world.month(month)).height
    world.month(month).unlink()
    report = world.sync()
    assert report.added == rows == sum(request.rows for request in world.klines())
    assert world.fingerprint() == undisturbed


def test_a_deleted_month_with_an_outage_in_it_comes_back_without_asking_for_the_outage(
    tmp_path: Path,
) -> None:
    with serve(without(1_300, 1_330)) as exchange:  # 2024-01-08
        world = World(exchange, tmp_path)
        world.sync()
        before = world.fingerprint()
        world.month("2024-01").unlink()
        world.sync()
        assert world.fingerprint() == before
        assert all(request.rows > 0 for request in world.klines())
        assert [status for *_, status in holes_of(world)] == ["outage"]


def test_a_damaged_month_is_named_and_comes_back_once_deleted(
    world: World, undisturbed: dict[str, str]
) -> None:
    world.sync()
    damaged = world.month("2024-01")
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(LakeError, match=re.escape(str(damaged))):
        world.sync()
    damaged.unlink()
    world.sync()
    assert world.fingerprint() == undisturbed


def test_a_delisted_symbol_costs_one_page_request(tmp_path: Path) -> None:
    with serve(CANDLES[:1_000], now_ms=START + 2_000 * HOUR) as exchange:
        world = World(exchange, tmp_path)
        assert world.sync().rows == 1_000
        report = world.sync()
        assert (report.up_to_date, len(world.klines())) == (True, 1)
        assert holes_of(world) == []


def test_an_end_before_the_start_is_refused_in_one_sentence(world: World) -> None:
    with pytest.raises(ValueError, match=r"Expected an end after the start, found start .* and end .*; swap"):
        world.sync(start_ms=START + HOUR, end_ms=START)
    assert world.exchange.requests == []


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "words"),
    [
        (START - 50 * HOUR, START - 10 * HOUR, "Binance has them since 2023-11-15 00:00:00 UTC"),
        (None, START - 10 * HOUR, "Binance has them since 2023-11-15 00:00:00 UTC"),
        (NOW + DAY, None, "the exchange's clock says"),
        (NOW + DAY, NOW + 2 * DAY, "the exchange's clock says"),
        (NOW, None, "the exchange's clock says"),
    ],
)
def test_a_range_without_candles_is_an_error_that_says_where_they_are(
    world: World, start_ms: int | None, end_ms: int | None, words: str
) -> None:
    for _ in range(2):  # what the ledger knows by then changes nothing
        with pytest.raises(NoCandles, match=words):
            world.sync(start_ms=start_ms, end_ms=end_ms)
    assert world.lake.span(KEY) is None


def test_a_range_within_an_outage_is_an_error_too(tmp_path: Path) -> None:
    with serve(without(700, 730)) as exchange:
        world = World(exchange, tmp_path)
        world.sync()
        for _ in range(2):
            with pytest.raises(NoCandles, match="found none"):
                world.sync(start_ms=START + 705 * HOUR, end_ms=START + 710 * HOUR)


def test_an_unknown_symbol_is_named_with_its_neighbours(world: World) -> None:
    with pytest.raises(BadSymbol, match=r"'AAUSDT'.*AAAUSDT"):
        world.sync(SeriesKey.parse("um:AAUSDT", "1h"))
    assert world.lake.series() == []


def test_a_series_that_somebody_else_writes_is_left_alone(world: World) -> None:
    with Lake(world.root).writing(KEY), pytest.raises(LockedError):
        world.sync()


def test_progress_rises_to_the_whole(world: World) -> None:
    told: list[tuple[int, int]] = []
    world.sync(progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {COUNT}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (COUNT, COUNT)
    assert len(told) > COUNT // 499


@pytest.mark.parametrize("name", ["1m", "1d", "1w", "1M"])
def test_other_intervals_are_synced_exactly_too(tmp_path: Path, name: str) -> None:
    interval = Interval(name)
    key = SeriesKey.parse("spot:BBBUSDT", interval)
    start_ms = interval.floor(START)
    candles = synthetic_market([key], start_ms=start_ms, count=1_100 if name == "1m" else 60, seed=3)[key]
    last_ms = int(ms(candles)[-1])
    with serve(candles, now_ms=last_ms + 1, key=key) as exchange:
        world = World(exchange, tmp_path)
        world.sync(key)
        assert_frame_equal(world.lake.read(key), candles[:-1], check_exact=True)
        world.sync(key)
        assert world.klines() == []
        exchange.clock.set(interval.next(last_ms))
        world.sync(key)
        assert_frame_equal(world.lake.read(key), candles, check_exact=True)
        assert len(world.klines()) == 1


@pytest.mark.parametrize("name", ["spot:BTCUSDT", "um:DOGEUSDT"])
def test_real_candles_arrive_value_by_value(shared_data: Path, tmp_path: Path, name: str) -> None:
    key = SeriesKey.parse(name, "1h")
    candles = read_candles(shared_data / f"{key.market}_{key.symbol}_1h.parquet", key.interval)
    end_ms = int(ms(candles)[-1]) + HOUR
    with serve(candles, now_ms=end_ms, key=key) as exchange:
        world = World(exchange, tmp_path)
        report = world.sync(key)
    stored = world.lake.read(key)
    assert report.rows == len(candles)
    exact = ["open_time", "open", "high", "low", "close", "volume", "close_time"]
    assert_frame_equal(stored.select(exact), candles.select(exact), check_exact=True)
    # Where the file has no quote volume the replay serves this estimate.
    estimate = pl.col("volume") * (pl.col("open") + pl.col("high") + pl.col("low") + pl.col("close")) / 4
    expected = candles.select(pl.col("quote_volume").fill_null(estimate))
    assert_frame_equal(stored.select("quote_volume"), expected, check_exact=True)
