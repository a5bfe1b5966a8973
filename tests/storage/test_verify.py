"""A sound series has no findings; every kind of damage has one that names the month and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from storage.lake import Lake
from storage.ledger import Failure, Hole, Ledger, Source
from storage.schema import SeriesKey
from storage.statistics import series_statistics
from storage.verify import Finding, verify_series
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, full_candles

REST = Source("rest", "https://api")
COUNT = 1_000  # June and a part of July
CANDLES = full_candles(COUNT)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    lake.upsert(BTC, CANDLES, source=REST)
    return lake


def findings(lake: Lake) -> list[Finding]:
    return verify_series(lake, Ledger(lake.folder(BTC).parents[2]), BTC)


def july(lake: Lake) -> Path:
    return lake.files(BTC)["2024-07"]


def ledger_file(lake: Lake) -> Path:
    return lake.folder(BTC) / "ledger.json"


def forget_checksums(lake: Lake) -> None:
    """As of a ledger that was written before it kept any."""
    stored = json.loads(ledger_file(lake).read_text())
    del stored["files"]
    ledger_file(lake).write_text(json.dumps(stored))


def test_a_sound_series_has_no_findings(lake: Lake) -> None:
    assert findings(lake) == []
    forget_checksums(lake)
    assert findings(lake) == []


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:800])


def rewrite(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        change(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path)

    return write


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "damaged file"),
        (rewrite(lambda frame: frame.drop("trades")), "expected the columns"),
        (rewrite(lambda frame: frame.reverse()), "oldest row first"),
        (rewrite(lambda frame: pl.concat([frame, frame[-1:]])), "one row per open_time"),
        (rewrite(lambda frame: frame.with_columns(pl.col("low") * 2)), "high >= low"),
        (
            rewrite(lambda frame: pl.concat([CANDLES[:1], frame])),
            "of this month alone, found one of 2024-06-01",
        ),
        (
            rewrite(lambda frame: frame.with_columns(pl.col("open_time", "close_time").dt.offset_by("1m"))),
            "grid",
        ),
    ],
)
def test_a_harmed_month_is_named_with_its_remedy(
    lake: Lake, harm: Callable[[Path], None], words: str
) -> None:
    forget_checksums(lake)
    harm(july(lake))
    (finding,) = findings(lake)
    assert finding.month == "2024-07"
    assert words in finding.problem
    assert str(july(lake)) in finding.remedy


def test_a_value_that_changed_on_disk_is_noticed_by_the_checksum_alone(lake: Lake) -> None:
    rewrite(lambda frame: frame.with_columns(pl.col("volume") * 1.01))(july(lake))
    (finding,) = findings(lake)
    assert (finding.month, "sha256" in finding.problem) == ("2024-07", True)
    assert str(finding).startswith("spot:BTCUSDT:1h 2024-07: expected the file as it was written")
    forget_checksums(lake)
    assert findings(lake) == []


def test_following_the_remedy_makes_the_series_sound_again(lake: Lake) -> None:
    damage(july(lake))
    july(lake).unlink()
    (finding,) = findings(lake)
    assert "ingest the series again" in finding.remedy
    lake.upsert(BTC, CANDLES, source=REST)
    assert findings(lake) == []


def test_candles_without_a_source_are_found(lake: Lake) -> None:
    stored = json.loads(ledger_file(lake).read_text())
    stored["parts"][0]["last_ms"] -= 5 * HOUR_MS
    ledger_file(lake).write_text(json.dumps(stored))
    (finding,) = findings(lake)
    assert "found none for 5 from" in finding.problem


def test_an_unreadable_ledger_is_a_finding(lake: Lake) -> None:
    ledger_file(lake).write_text("{")
    (finding,) = findings(lake)
    assert "ledger of version 1" in finding.problem


def test_every_upsert_leaves_the_checksums_of_the_files_as_they_are(lake: Lake) -> None:
    lake.upsert(BTC, full_candles(30, start_ms=JUNE_MS + (COUNT + 3) * HOUR_MS), source=REST)
    lake.upsert(BTC, full_candles(10, seed=4), source=Source("import", "file.csv"))
    assert findings(lake) == []


def test_a_ledger_remembers_failures_until_the_part_is_taken_and_a_stale_end(tmp_path: Path) -> None:
    ledger, lake = Ledger(tmp_path), Lake(tmp_path)
    for reason in ("broken", "broken again"):
        ledger.fail(BTC, Failure("BTCUSDT-1h-2024-06.zip", reason, 1))
    ledger.fail(BTC, Failure("BTCUSDT-1h-2024-07.zip", "no checksum", 2))
    assert [(one.part[-11:-4], one.reason) for one in ledger.failures(BTC)] == [
        ("2024-06", "broken again"),
        ("2024-07", "no checksum"),
    ]
    lake.upsert(BTC, CANDLES[:24], source=Source("archive", "BTCUSDT-1h-2024-06.zip", "ab" * 32))
    assert [one.reason for one in ledger.failures(BTC)] == ["no checksum"]
    ledger.set_tail(BTC, Hole(10, 20, 10))
    assert ledger.tail(BTC) == Hole(10, 20, 10, "stale")
    ledger.set_tail(BTC, None)
    assert ledger.tail(BTC) is None


def test_statistics_agree_with_the_whole_series_at_once(tmp_path: Path) -> None:
    lake, key = Lake(tmp_path), SeriesKey.parse("um:BTCUSDT", "1h")
    halted = pl.int_range(pl.len()).is_between(700, 739)  # across the end of June
    candles = CANDLES.with_columns(
        *(
            pl.when(halted).then(pl.lit(77.0)).otherwise(pl.col(name)).alias(name)
            for name in ("open", "high", "low", "close")
        ),
        pl.when(halted).then(0.0).otherwise(pl.col("volume")).alias("volume"),
        pl.when(pl.int_range(pl.len()) < 9)
        .then(None)
        .otherwise(pl.col("quote_volume"))
        .alias("quote_volume"),
    )
    lake.upsert(key, candles, source=REST)
    found = series_statistics(lake, key)
    assert (found.rows, found.flat, found.zero_volume, found.longest_flat) == (COUNT, 40, 40, 40)
    assert (found.first_close, found.last_close) == (candles["close"][0], candles["close"][-1])
    assert (found.lowest, found.highest) == (candles["low"].min(), candles["high"].max())
    returns = candles["close"].log().diff().drop_nulls()
    assert found.return_std == pytest.approx(returns.std(ddof=0))
    assert found.volume == pytest.approx(candles["volume"].sum())
    assert found.quote_volume == pytest.approx(candles["quote_volume"].sum())
    assert found.quote_volume_missing == 9
