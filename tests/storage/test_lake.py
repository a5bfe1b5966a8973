"""The lake: same bytes whatever the history, whole files whatever fails, one writer per series."""

import errno
import hashlib
import os
import random
import signal
from pathlib import Path

import polars as pl
import pytest

from storage.errors import CandleError, LakeError, LockedError, StorageError
from storage.interval import Interval
from storage.lake import Lake, Span, Upsert
from storage.ledger import Ledger, Source
from storage.schema import CANDLE_SCHEMA, SeriesKey
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, full_candles, second_process

REST = Source("rest", "klines")
START_MS = JUNE_MS - 40 * 24 * HOUR_MS  # 2024-04-22
MONTHS = full_candles(24 * 100, start_ms=START_MS)  # into August

HOLD = """
import sys
from pathlib import Path
from storage.lake import Lake
from tests.support.candles import BTC
with Lake(Path(sys.argv[1])).writing(BTC):
    print("held", flush=True)
    sys.stdin.read()
"""

DIE_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from storage import parquet
from storage.lake import Lake
from storage.ledger import Source
from tests.support.candles import BTC, full_candles
print("started", flush=True)
os.replace = lambda old, new: (
    os.kill(os.getpid(), signal.SIGKILL) if str(new).endswith("parquet") else os.rename(old, new)
)
Lake(Path(sys.argv[1])).upsert(BTC, full_candles(50, seed=2), source=Source("rest", "klines"))
"""

REWRITE = """
import os, sys
from pathlib import Path
import polars as pl
from storage.lake import Lake
from storage.ledger import Source
from tests.support.candles import BTC, full_candles
lake, rows = Lake(Path(sys.argv[1])), full_candles(600)
os.fsync = lambda descriptor: None  # for speed
print("started", flush=True)
for version in range(1, 1000):
    part = rows.head(100 + version % 500)
    lake.upsert(BTC, part.with_columns(volume=pl.lit(float(version))), source=Source("rest", "klines"))
    lake.upsert(BTC, rows.with_columns(volume=pl.lit(float(version))), source=Source("rest", "klines"))
"""


def files(root: Path) -> dict[str, str]:
    """Digest by path of every candle file."""
    found = root.rglob("*.parquet")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def filled(root: Path, frame: pl.DataFrame = MONTHS) -> Lake:
    lake = Lake(root)
    lake.upsert(BTC, frame, source=REST)
    return lake


def month_file(root: Path, month: str) -> Path:
    return root / "market=spot" / "symbol=BTCUSDT" / "interval=1h" / f"month={month}" / "candles.parquet"


def test_what_is_upserted_is_read(tmp_path):
    lake = Lake(tmp_path)
    assert lake.upsert(BTC, MONTHS, source=REST) == Upsert(added=2400, changed=0, unchanged=0)
    candles = lake.read(BTC)
    assert candles.equals(MONTHS)
    assert dict(candles.schema) == CANDLE_SCHEMA
    assert candles["open_time"].flags["SORTED_ASC"]
    assert sorted(files(tmp_path)) == [
        f"market=spot/symbol=BTCUSDT/interval=1h/month=2024-{month}/candles.parquet"
        for month in ("04", "05", "06", "07")
    ]


def test_months_lie_on_disk_as_promised(tmp_path):
    filled(tmp_path)
    june = pl.read_parquet(month_file(tmp_path, "2024-06"))
    assert june["open_time"].dt.strftime("%Y-%m").unique().to_list() == ["2024-06"]
    assert june.height == 24 * 30


@pytest.mark.parametrize("seed", range(4))
def test_the_bytes_are_the_same_whatever_the_order_and_size_of_the_pages(tmp_path, seed):
    filled(tmp_path / "once")
    lake, rng = Lake(tmp_path / "pages"), random.Random(seed)
    pages = []
    first = 0
    while first < len(MONTHS):
        size, overlap = rng.randint(1, 400), rng.randint(0, 50)
        pages.append(MONTHS[max(0, first - overlap) : first + size])
        first += size
    wrong = MONTHS.slice(700, 300).with_columns(pl.col("volume") * 2, quote_volume=None)
    rng.shuffle(pages)
    lake.upsert(BTC, wrong, source=REST)
    for page in pages:
        lake.upsert(BTC, page, source=REST)
    assert lake.read(BTC).equals(MONTHS)
    assert files(tmp_path / "pages") == files(tmp_path / "once")


def test_a_frame_put_together_from_pieces_gives_the_same_bytes(tmp_path):
    filled(tmp_path / "once")
    pieces = pl.concat([MONTHS.slice(first, 7) for first in range(0, len(MONTHS), 7)], rechunk=False)
    assert pieces.n_chunks() > 100
    filled(tmp_path / "pieces", pieces)
    assert files(tmp_path / "pieces") == files(tmp_path / "once")


def test_the_same_rows_twice_change_no_byte_and_no_time(tmp_path):
    lake = filled(tmp_path)
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()
    }
    assert lake.upsert(BTC, MONTHS, source=REST) == Upsert(added=0, changed=0, unchanged=2400)
    assert lake.upsert(BTC, MONTHS[300:900], source=Source("archive", "a.zip", "00")).unchanged == 600
    after = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()
    }
    lock = {path for path in before if path.name == ".lock.json"}  # who held it last
    assert {path: after[path] for path in before.keys() - lock} == {
        path: before[path] for path in before.keys() - lock
    }
    assert before.keys() == after.keys()


def test_only_months_that_change_are_written(tmp_path):
    lake = filled(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    july = MONTHS.filter(pl.col("open_time").dt.month() == 7).head(3).with_columns(volume=pl.lit(7.0))
    assert lake.upsert(BTC, pl.concat([MONTHS[:10], july]), source=REST) == Upsert(
        added=0, changed=3, unchanged=10
    )
    written = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert written == [month_file(tmp_path, "2024-07")]


def test_a_null_that_becomes_known_is_a_change(tmp_path):
    lake = filled(tmp_path, MONTHS.head(10).with_columns(trades=pl.lit(None, pl.Int64)))
    assert lake.upsert(BTC, MONTHS.head(12), source=REST) == Upsert(added=2, changed=10, unchanged=0)
    assert lake.read(BTC).equals(MONTHS.head(12))


@pytest.mark.parametrize(
    ("start", "end"), [(0, 2400), (5, 6), (230, 1000), (None, 300), (2000, None), (500, 500), (-50, 9999)]
)
def test_a_range_reads_from_its_start_up_to_but_not_at_its_end(tmp_path, start, end):
    lake = filled(tmp_path)
    bounds = [None if at is None else START_MS + at * HOUR_MS for at in (start, end)]
    assert lake.read(BTC, *bounds).equals(MONTHS[max(0, start or 0) : end])
    assert dict(lake.read(BTC, *bounds).schema) == CANDLE_SCHEMA


def test_a_range_outside_the_series_is_empty(tmp_path):
    lake = filled(tmp_path, MONTHS.head(5))
    assert lake.read(BTC, 0, START_MS).is_empty()
    assert dict(lake.read(BTC, 0, START_MS - 10**10).schema) == CANDLE_SCHEMA


def test_months_outside_the_range_are_never_opened(tmp_path):
    lake = filled(tmp_path)
    for month in ("2024-04", "2024-05", "2024-07"):
        month_file(tmp_path, month).write_bytes(b"broken")
    july_ms = JUNE_MS + 30 * 24 * HOUR_MS
    june = lake.read(BTC, JUNE_MS, july_ms)
    assert june.height == 24 * 30
    assert lake.upsert(BTC, june, source=REST).unchanged == june.height
    with pytest.raises(LakeError):
        lake.read(BTC, JUNE_MS, july_ms + 1)


def test_the_span_of_a_series(tmp_path):
    lake = filled(tmp_path, pl.concat([MONTHS[3:10], MONTHS[20:30]]))
    assert lake.span(BTC) == Span(first_ms=START_MS + 3 * HOUR_MS, last_ms=START_MS + 29 * HOUR_MS, rows=17)


def test_a_series_that_is_not_there_has_no_span_and_is_not_read(tmp_path):
    lake = Lake(tmp_path / "nowhere")
    assert lake.span(BTC) is None
    assert lake.series() == []
    with pytest.raises(
        LakeError, match=r"expected candles of spot:BTCUSDT:1h in .*, found none; ingest the series"
    ):
        lake.read(BTC)
    assert not (tmp_path / "nowhere").exists()


def test_all_series_are_listed_in_order(tmp_path):
    lake = Lake(tmp_path)
    keys = [
        SeriesKey.parse(name, interval)
        for name in ("um:ETHUSDT", "spot:BTCUSDT")
        for interval in ("1M", "1m")
    ]
    for key in keys:
        interval = key.interval
        candles = full_candles(3, start_ms=interval.floor(JUNE_MS), interval=interval)
        lake.upsert(key, candles, source=REST)
        assert lake.read(key).equals(candles)
    with lake.writing(SeriesKey.parse("spot:EMPTYUSDT", "1h")):
        pass
    assert [str(key) for key in lake.series()] == [
        "spot:BTCUSDT:1m",
        "spot:BTCUSDT:1M",
        "um:ETHUSDT:1m",
        "um:ETHUSDT:1M",
    ]


def test_bad_candles_never_enter(tmp_path):
    lake = Lake(tmp_path)
    with pytest.raises(CandleError, match=r"^spot:BTCUSDT:1h from rest klines: expected volume >= 0"):
        lake.upsert(BTC, MONTHS.with_columns(volume=pl.lit(-1.0)), source=REST)
    assert lake.span(BTC) is None


def test_no_rows_change_nothing(tmp_path):
    assert Lake(tmp_path).upsert(BTC, MONTHS.clear(), source=REST) == Upsert(added=0, changed=0, unchanged=0)
    assert files(tmp_path) == {}


def test_the_ledger_knows_where_new_candles_came_from(tmp_path):
    lake = Lake(tmp_path, now_ms=lambda: 7)
    archive = Source("archive", "BTCUSDT-1h-2024-05.zip", "ab" * 32)
    lake.upsert(BTC, MONTHS[:300], source=archive)
    lake.upsert(BTC, MONTHS[200:310], source=REST)
    parts = Ledger(tmp_path).parts(BTC)
    assert [(part.source, part.first_ms, part.last_ms, part.recorded_ms) for part in parts] == [
        (archive, START_MS, START_MS + 299 * HOUR_MS, 7),
        (REST, START_MS + 300 * HOUR_MS, START_MS + 309 * HOUR_MS, 7),
    ]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, step):
    lake = filled(tmp_path, MONTHS[:300])
    before = files(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, step, full)
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            lake.upsert(BTC, MONTHS[:600], source=REST)
    assert files(tmp_path) == before
    assert list(tmp_path.rglob(".*.tmp*")) == []
    assert lake.read(BTC).equals(MONTHS[:300])
    assert lake.upsert(BTC, MONTHS[:600], source=REST).added == 300


def test_a_read_only_lake_is_one_sentence(tmp_path, monkeypatch):
    lake = filled(tmp_path, MONTHS[:300])

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StorageError, match="read-only; choose another home"):
        lake.upsert(BTC, MONTHS[:600], source=REST)
    assert lake.read(BTC).equals(MONTHS[:300])


def test_a_crash_between_two_months_keeps_whole_months_and_the_next_run_ends_the_same(tmp_path, monkeypatch):
    filled(tmp_path / "undisturbed")
    lake, replace = Lake(tmp_path / "lake"), os.replace

    def crash(old: str, new: str) -> None:
        if "2024-06" in str(new):
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            lake.upsert(BTC, MONTHS, source=REST)
    assert lake.read(BTC).equals(MONTHS.filter(pl.col("open_time").dt.month() < 6))
    lake.upsert(BTC, MONTHS, source=REST)
    assert files(tmp_path / "lake") == files(tmp_path / "undisturbed")
    assert [(part.first_ms, part.last_ms) for part in Ledger(tmp_path / "lake").parts(BTC)] == [
        (START_MS, START_MS + 2399 * HOUR_MS)
    ]


def test_a_writer_killed_before_the_rename_loses_nothing_and_its_temp_is_swept(tmp_path):
    lake = filled(tmp_path, full_candles(40))
    before = files(tmp_path)
    with second_process(DIE_BEFORE_RENAME, tmp_path) as process:
        assert process.wait(60) == -signal.SIGKILL
    leftover = [path for path in tmp_path.rglob("*.parquet") if path.name.startswith(".")]
    assert len(leftover) == 1
    assert files(tmp_path).items() > before.items()
    assert lake.read(BTC).equals(full_candles(40))
    assert lake.upsert(BTC, full_candles(50, seed=2), source=REST) == Upsert(
        added=10, changed=40, unchanged=0
    )
    assert not leftover[0].exists()


def test_two_writers_of_a_series_exclude_each_other(tmp_path):
    lake = Lake(tmp_path)
    with second_process(HOLD, tmp_path) as process:
        pattern = (
            rf"expected the series spot:BTCUSDT:1h to be free, found process {process.pid} \(writing spot:BTC"
        )
        with pytest.raises(LockedError, match=pattern):
            lake.upsert(BTC, MONTHS, source=REST)
        other = SeriesKey.parse("um:BTCUSDT", "1h")
        assert lake.upsert(other, MONTHS, source=REST).added == 2400
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lake.upsert(BTC, MONTHS, source=REST).added == 2400


def test_the_lock_nests_within_a_writer(tmp_path):
    lake = Lake(tmp_path)
    with lake.writing(BTC):
        lake.upsert(BTC, MONTHS[:10], source=REST)
        with pytest.raises(LockedError):
            Lake(tmp_path).upsert(BTC, MONTHS, source=REST)
        lake.upsert(BTC, MONTHS[:20], source=REST)
    assert Lake(tmp_path).upsert(BTC, MONTHS, source=REST).added == 2380


@pytest.mark.whole
def test_readers_see_whole_files_while_a_writer_replaces_them(tmp_path):
    filled(tmp_path, full_candles(600).with_columns(volume=pl.lit(0.0)))
    lake, versions = Lake(tmp_path), set()
    with second_process(REWRITE, tmp_path):
        for _ in range(5000):
            candles = lake.read(BTC)
            assert candles.height == 600
            seen = candles["volume"].unique().to_list()
            # A whole file holds one version, or a newer one in its first rows.
            assert len(seen) <= 2
            assert candles["volume"].is_sorted(descending=True)
            versions.update(seen)
            if len(versions) > 50:
                break
    assert len(versions) > 50


@pytest.mark.parametrize("damage", ["empty", "text", "half", "other"])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, damage):
    lake = filled(tmp_path)
    path = month_file(tmp_path, "2024-06")
    content = path.read_bytes()
    if damage == "other":
        pl.DataFrame({"open_time": [1]}).write_parquet(path)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"garbage " * 99, "half": content[: len(content) // 2]}[damage]
        )
    pattern = (
        rf"^expected candles in {path}, found (a damaged file|other columns); delete it, the next ingest"
    )
    for act in (lake.read, lake.span, lambda key: lake.upsert(key, MONTHS, source=REST)):
        with pytest.raises(LakeError, match=pattern):
            act(BTC)
    path.unlink()
    lake.upsert(BTC, MONTHS, source=REST)
    assert path.read_bytes() == content


def test_days_lie_in_months_too(tmp_path):
    day = Interval("1d")
    key = SeriesKey("um", "DOGEUSDT", day)
    candles = full_candles(900, start_ms=day.floor(JUNE_MS), interval=day)
    lake = Lake(tmp_path)
    for first in (600, 0, 300):
        lake.upsert(key, candles[first : first + 300], source=REST)
    assert lake.read(key).equals(candles)
    assert len(files(tmp_path)) == 30
