"""The ledger: where stretches came from, and what is known of holes."""

import random
from itertools import pairwise

import polars as pl
import pytest

from storage.errors import CandleError, LakeError
from storage.interval import Interval
from storage.ledger import Hole, Ledger, Part, Source, find_holes
from storage.schema import SeriesKey
from tests.support.candles import BTC, HOUR, HOUR_MS, JUNE_MS, full_candles

REST = Source("rest", "klines")
ARCHIVE = Source("archive", "BTCUSDT-1h-2024-06.zip", "ab" * 32)


def at(row: int) -> int:
    return JUNE_MS + row * HOUR_MS


def part(first: int, last: int, *, source: Source = REST, recorded_ms: int = 1) -> Part:
    return Part(source, at(first), at(last), recorded_ms)


def without(*rows: int, count: int = 48) -> pl.DataFrame:
    frame = full_candles(count)
    return frame.filter(~pl.int_range(pl.len()).is_in(list(rows)))


def test_parts_are_kept_with_source_digest_and_time(tmp_path):
    parts = [part(0, 9, source=ARCHIVE, recorded_ms=5), part(5, 20, recorded_ms=9)]
    for one in parts:
        Ledger(tmp_path).record(BTC, one)
    assert Ledger(tmp_path).parts(BTC) == parts
    assert Ledger(tmp_path).parts(SeriesKey.parse("um:BTCUSDT", "1h")) == []


def test_neighbouring_pages_of_one_source_become_one_part(tmp_path):
    ledger = Ledger(tmp_path)
    for first in (20, 0, 30, 10):
        ledger.record(BTC, part(first, first + 9, recorded_ms=first))
    assert ledger.parts(BTC) == [part(0, 39, recorded_ms=10)]


def test_pages_with_a_hole_between_them_stay_two_parts_until_it_is_filled(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record(BTC, part(0, 9))
    ledger.record(BTC, part(11, 19))
    ledger.record(BTC, part(30, 39))
    assert ledger.parts(BTC) == [part(0, 9), part(11, 19), part(30, 39)]
    ledger.record(BTC, part(10, 10, recorded_ms=2))
    assert ledger.parts(BTC) == [part(0, 19, recorded_ms=2), part(30, 39)]


def test_many_pages_in_any_order_cover_what_a_set_of_rows_covers(tmp_path):
    rng = random.Random(3)
    ledger, rows = Ledger(tmp_path), set()
    for _ in range(60):
        first = rng.randint(0, 400)
        last = first + rng.randint(0, 12)
        ledger.record(BTC, part(first, last))
        rows.update(range(first, last + 1))
        starts = [row for row in sorted(rows) if row - 1 not in rows]
        ends = [row for row in sorted(rows) if row + 1 not in rows]
        assert ledger.parts(BTC) == [part(*both) for both in zip(starts, ends, strict=True)]


def test_what_its_source_covers_already_changes_no_byte(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record(BTC, part(0, 9))
    (path,) = tmp_path.rglob("ledger.json")
    before = path.read_bytes(), path.stat().st_mtime_ns
    ledger.record(BTC, part(2, 9, recorded_ms=99))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_another_digest_of_the_same_file_is_another_source(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record(BTC, part(0, 9, source=ARCHIVE))
    ledger.record(BTC, part(0, 9, source=Source("archive", ARCHIVE.detail, "cd" * 32), recorded_ms=2))
    assert len(ledger.parts(BTC)) == 2


@pytest.mark.parametrize("rows", [(), (5,), (5, 6, 7), (1, 3), (0, 1), (46, 47), (2, 10, 11, 40)])
def test_holes_are_the_runs_of_missing_rows_inside_the_series(rows):
    frame = without(*rows)
    present = [row for row in range(48) if row not in rows]
    inner = [row for row in rows if present[0] < row < present[-1]]
    starts = [row for row in inner if row - 1 not in inner]
    ends = [row + 1 for row in inner if row + 1 not in inner]
    expected = [
        Hole(at(start), at(end), end - start, "open") for start, end in zip(starts, ends, strict=True)
    ]
    assert find_holes(frame, HOUR) == expected


def test_months_and_weeks_have_holes_by_the_calendar():
    month, week = Interval("1M"), Interval("1w")
    months = full_candles(8, start_ms=month.floor(JUNE_MS), interval=month)
    (hole,) = find_holes(pl.concat([months[:2], months[5:]]), month)
    stamps = months["open_time"].dt.epoch("ms")
    assert hole == Hole(stamps[2], stamps[5], 3)
    weeks = full_candles(5, start_ms=week.floor(JUNE_MS), interval=week)
    assert find_holes(weeks, week) == []
    assert find_holes(pl.concat([weeks[:1], weeks[2:]]), week)[0].candles == 1


def test_few_or_no_candles_have_no_holes():
    assert find_holes(full_candles(1), HOUR) == []
    assert find_holes(full_candles(1).clear(), HOUR) == []


@pytest.mark.parametrize("at", [(12,), (5, 6), (6, 30), (7, 8, 9), (1, 2, 47)])
def test_holes_of_a_series_in_pieces_are_those_of_the_whole(at: tuple[int, ...]) -> None:
    frame = without(0, 6, 7, 8, 29, 40)
    borders = [0, *at, len(frame)]
    pieces = [frame[begin:end] for begin, end in pairwise(borders)]
    assert find_holes(iter([frame.clear(), *pieces]), HOUR) == find_holes(frame, HOUR)
    assert len(find_holes(frame, HOUR)) == 3


def test_rows_off_the_grid_are_found_before_any_hole():
    # Binance, February 2018: candles that open at hh:28:14.789.
    frame = full_candles(4).with_columns(pl.col("open_time") + pl.duration(milliseconds=1_694_789))
    with pytest.raises(CandleError, match=r"on the 1h grid, found 2024-06-01 00:28:14\.789 UTC"):
        find_holes(frame, HOUR)


def test_a_confirmed_outage_is_no_longer_open(tmp_path):
    ledger, frame = Ledger(tmp_path), without(5, 6, 20)
    first, second = ledger.holes(BTC, frame)
    assert (first.status, second.status) == ("open", "open")
    ledger.mark(BTC, first, "outage")
    assert [hole.status for hole in Ledger(tmp_path).holes(BTC, frame)] == ["outage", "open"]


def test_what_is_left_of_an_outage_is_an_outage_and_what_is_more_is_open(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.mark(BTC, Hole(at(5), at(9), 4), "outage")
    assert [hole.status for hole in ledger.holes(BTC, without(6, 7))] == ["outage"]
    for more in ((4, 5, 6, 7, 8), (5, 6, 7, 8, 9), (3,), (12,)):
        assert [hole.status for hole in ledger.holes(BTC, without(*more))] == ["open"]


def test_a_repaired_hole_is_remembered_and_open_again_if_it_comes_back(tmp_path):
    ledger = Ledger(tmp_path)
    (hole,) = ledger.holes(BTC, without(5))
    ledger.mark(BTC, hole, "repaired")
    assert ledger.holes(BTC, full_candles(48)) == []
    assert ledger.marks(BTC) == [Hole(at(5), at(6), 1, "repaired")]
    assert ledger.holes(BTC, without(5)) == [hole]


def test_the_last_word_on_a_hole_counts_and_saying_it_twice_changes_nothing(tmp_path):
    ledger, hole = Ledger(tmp_path), Hole(at(5), at(6), 1)
    ledger.record(BTC, part(0, 9))
    for status in ("outage", "repaired"):
        ledger.mark(BTC, hole, status)
    (path,) = tmp_path.rglob("ledger.json")
    before = path.stat().st_mtime_ns
    ledger.mark(BTC, hole, "repaired")
    assert path.stat().st_mtime_ns == before
    assert [mark.status for mark in ledger.marks(BTC)] == ["repaired"]
    assert ledger.parts(BTC) == [part(0, 9)]


@pytest.mark.parametrize("content", ["", "[]", '{"parts": [{}], "holes": []}', '{"parts": []}'])
def test_an_unreadable_ledger_is_named_with_its_remedy(tmp_path, content):
    ledger = Ledger(tmp_path)
    ledger.record(BTC, part(0, 9))
    (path,) = tmp_path.rglob("ledger.json")
    path.write_text(content)
    with pytest.raises(
        LakeError, match=rf"^expected a ledger of version 1 in {path}, found .*delete that file"
    ):
        ledger.parts(BTC)
