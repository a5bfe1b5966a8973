"""What is known of a stored series, and samples of it held against the exchange."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from exchange.archive import ArchiveClient
from exchange.audit import compare_archive, compare_pages
from exchange.inventory import Inventory, take_inventory
from exchange.outages import OUTAGES, known_outage
from exchange.replay import ArchiveStyle, PartFault, ReplayClock, ReplayExchange, synthetic_market
from exchange.rest import RestClient
from exchange.sync import sync_series
from storage.errors import LakeError
from storage.interval import Interval
from storage.lake import Lake
from storage.ledger import Ledger, Source
from storage.schema import SeriesKey

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
SPOT = SeriesKey.parse("spot:BTCUSDT", "1h")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def hours(start: str, count: int) -> pl.DataFrame:
    return synthetic_market([SPOT], start_ms=at(start), count=count, seed=1)[SPOT]


def between(start: str, end: str) -> pl.Expr:
    return pl.col("open_time").dt.epoch("ms").is_between(at(start), at(end), closed="left")


class Stored:
    """A series synced from an exchange that lacks some of its candles."""

    def __init__(self, root: Path, candles: pl.DataFrame, *, now: str) -> None:
        self.lake, self.ledger = Lake(root), Ledger(root)
        with (
            ReplayExchange({SPOT: candles}, clock=ReplayClock(at(now))) as exchange,
            RestClient("spot", exchange.config) as client,
        ):
            sync_series(client, self.lake, self.ledger, SPOT)

    def inventory(self, now: str) -> Inventory:
        return take_inventory(self.lake, self.ledger, SPOT, now_ms=at(now))


def test_a_known_outage_is_named_and_another_hole_is_not(tmp_path: Path) -> None:
    candles = hours("2021-04-15", 400)
    outages = between("2021-04-25T05:00", "2021-04-25T08:00") | between(
        "2021-04-28T00:00", "2021-04-28T02:00"
    )
    held = Stored(tmp_path, candles.filter(~outages), now="2021-05-01").inventory("2021-05-01")
    assert [(hole.candles, hole.status) for hole in held.holes] == [(3, "outage"), (2, "outage")]
    assert (held.count("outage"), held.count("open"), held.count("repaired")) == (2, 0, 0)
    (name,) = held.names.values()
    assert name.startswith("exchange outage 2021-04-25 04:02 to 2021-04-25 08:45 UTC (binance-public-data")
    assert held.tail is None
    assert held.last_source.startswith("rest http://127.0.0.1")
    assert held.bytes > 0


def test_freshness_is_counted_in_candles_and_a_series_that_ended_is_stale(tmp_path: Path) -> None:
    stored = Stored(tmp_path, hours("2021-06-01", 100), now="2021-06-05T04:30")
    assert stored.inventory("2021-06-05T04:59").behind == 0
    assert stored.inventory("2021-06-05T05:00").behind == 1
    assert stored.inventory("2021-06-06T05:00").behind == 25
    ended = Stored(tmp_path / "other", hours("2021-06-01", 100), now="2021-07-01").inventory("2021-07-01")
    assert ended.tail is not None
    assert (ended.count("stale"), ended.tail.start_ms, ended.tail.candles) == (1, at("2021-06-05T04:00"), 620)


def test_a_series_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="ingest"):
        take_inventory(Lake(tmp_path), Ledger(tmp_path), SPOT, now_ms=0)


def test_outages_are_known_in_every_interval_and_only_in_their_market() -> None:
    start_ms, end_ms = at("2018-02-08T00:29"), at("2018-02-09T10:00")
    minute, hour = Interval("1m"), Interval("1h")
    assert known_outage("spot", start_ms, end_ms, minute) is not None
    assert known_outage("spot", at("2018-02-08T01:00"), at("2018-02-09T10:00"), hour) is not None
    assert (
        known_outage("spot", at("2018-02-08T00:29"), at("2018-02-10T06:15"), minute) is not None
    )  # and off-grid
    assert known_outage("um", start_ms, end_ms, minute) is None
    assert known_outage("spot", at("2018-02-01"), at("2018-02-15"), minute) is None
    assert known_outage("spot", at("2018-02-12"), at("2018-02-12T01:00"), minute) is None


def test_the_table_of_outages_is_in_order_and_without_overlaps() -> None:
    for market in ("spot", "um"):
        times = [(one.start_ms, one.end_ms) for one in OUTAGES if one.market == market]
        assert times == sorted(times)
        flat = [ms for pair in times for ms in pair]
        assert flat == sorted(set(flat))


KEY = SeriesKey.parse("um:AAAUSDT", "1m")
START = at("2024-04-01")
CANDLES = synthetic_market([KEY], start_ms=START, count=40 * 1440, seed=5)[KEY]


@pytest.fixture(scope="module")
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange({KEY: CANDLES}, clock=ReplayClock(START + 40 * DAY)) as served:
        yield served


@pytest.fixture
def lake(tmp_path: Path, exchange: ReplayExchange) -> Iterator[Lake]:
    with RestClient("um", exchange.config) as client, ArchiveClient("um", exchange.archive_config) as archive:
        sync_series(client, Lake(tmp_path), Ledger(tmp_path), KEY, archive=archive)
    yield Lake(tmp_path)
    exchange.archive.style = ArchiveStyle()


def pages(exchange: ReplayExchange, lake: Lake, *, pages: int = 8, seed: int = 0) -> list[str]:
    with RestClient("um", exchange.config) as client:
        return [str(one) for one in compare_pages(client, lake, KEY, pages=pages, seed=seed)]


def test_a_sample_of_a_sound_series_differs_nowhere(exchange: ReplayExchange, lake: Lake) -> None:
    exchange.forget_requests()
    assert pages(exchange, lake) == []
    first = [one.params for one in exchange.requests if one.path.endswith("klines")]
    assert len(first) == 8
    exchange.forget_requests()
    pages(exchange, lake)
    assert [one.params for one in exchange.requests if one.path.endswith("klines")] == first


def test_other_values_and_missing_candles_are_found_with_their_month(
    exchange: ReplayExchange, lake: Lake
) -> None:
    changed = CANDLES[:43_000].with_columns(pl.col("volume") + 1)
    lake.upsert(KEY, changed, source=Source("import", "elsewhere.csv"))
    (finding,) = pages(exchange, lake, pages=2)
    assert "2024-04: expected the exchange's candles, found" in finding
    assert "(volume " in finding
    assert "delete" in finding
    lake.files(KEY)["2024-05"].unlink()
    lake.upsert(KEY, CANDLES[-1:], source=Source("import", "elsewhere.csv"))
    assert any("that the lake lacks" in one for one in pages(exchange, lake, pages=12))


def test_a_zip_that_was_replaced_since_is_found_by_its_checksum(
    exchange: ReplayExchange, lake: Lake, tmp_path: Path
) -> None:
    def changed() -> list[str]:
        with ArchiveClient("um", exchange.archive_config, sleep=lambda seconds: None) as archive:
            return [
                one.problem for one in compare_archive(archive, lake, Ledger(tmp_path), KEY, parts=99, seed=0)
            ]

    assert changed() == []
    exchange.archive.style = ArchiveStyle(
        faults=(PartFault("altered", "*-2024-04.zip"), PartFault("absent", "*-2024-05-02.zip"))
    )
    replaced, gone = sorted(changed())
    assert replaced.startswith("AAAUSDT-1m-2024-04.zip had the sha256 ")
    assert gone.startswith("AAAUSDT-1m-2024-05-02.zip: expected a CHECKSUM")
