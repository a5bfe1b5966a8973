"""Candle files of every shape that people bring; what breaks a rule is refused with its row."""

import errno
import json
import os
import random
from pathlib import Path

import polars as pl
import pytest

from storage.candle_files import read_candles, read_folder, write_candles
from storage.errors import CandleError, StorageError
from storage.interval import Interval
from storage.schema import CANDLE_SCHEMA
from tests.support.candles import HOUR, HOUR_MS, JUNE_MS, full_candles

CANDLES = full_candles(30)
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore"
)


def binance_rows(frame: pl.DataFrame = CANDLES, *, scale: int = 1) -> list[list[str]]:
    """Rows as in Binance's archive: times as integers, numbers as text, a last column that holds nothing."""
    rows = []
    for row in frame.iter_rows(named=True):
        opened = round(row["open_time"].timestamp() * 1000) * scale
        closed = (round(row["close_time"].timestamp() * 1000) + 1) * scale - 1
        numbers = [repr(row[name]) for name in CANDLE_SCHEMA if name not in ("open_time", "close_time")]
        rows.append([str(opened), *numbers[:5], str(closed), *numbers[5:], "0"])
    return rows


def write_rows(path: Path, rows: list[list[str]], header: str | None = None) -> Path:
    lines = ([header] if header else []) + [",".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def simple_csv(path: Path, times: list[str], header: str = "timestamp,open,high,low,close,volume") -> Path:
    return write_rows(path, [[time, "1", "2", "0.5", "1.5", "10"] for time in times], header)


def refusal(path: Path, interval: Interval = HOUR) -> str:
    with pytest.raises(CandleError) as caught:
        read_candles(path, interval)
    text = str(caught.value)
    for word in ("expected ", ", found ", "; ", str(path.name)):
        assert word in text
    return text


@pytest.mark.parametrize("header", [None, HEADER])
@pytest.mark.parametrize("columns", [11, 12])
@pytest.mark.parametrize("scale", [1, 1000])
def test_binance_dumps_read_with_and_without_header_in_milliseconds_and_microseconds(
    tmp_path, header, columns, scale
):
    rows = [row[:columns] for row in binance_rows(scale=scale)]
    named = header and ",".join(header.split(",")[:columns])
    assert read_candles(write_rows(tmp_path / "a.csv", rows, named), HOUR).equals(CANDLES)


def test_the_unit_is_told_apart_row_by_row(tmp_path):
    # Binance's spot archive changes from ms to us at 2025-01-01; concatenated months mix both.
    rows = binance_rows(CANDLES[:10]) + binance_rows(CANDLES[10:], scale=1000)
    assert read_candles(write_rows(tmp_path / "a.csv", rows), HOUR).equals(CANDLES)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path, suffix):
    candles = pl.concat([CANDLES[:5], CANDLES[9:]]).with_columns(
        trades=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("trades")
    )
    path = tmp_path / f"a.{suffix}"
    write_candles(candles, path)
    assert read_candles(path, HOUR).equals(candles)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_hard_floats_survive_every_format(tmp_path, suffix):
    rng = random.Random(5)
    volume = pl.Series([rng.random() * 10.0 ** rng.randint(-12, 12) for _ in range(30)])
    candles = CANDLES.with_columns(volume=volume)
    write_candles(candles, tmp_path / f"a.{suffix}")
    assert read_candles(tmp_path / f"a.{suffix}", HOUR)["volume"].to_list() == volume.to_list()


def test_written_csv_is_for_people(tmp_path):
    write_candles(CANDLES, tmp_path / "a.csv")
    first, second = (tmp_path / "a.csv").read_text().splitlines()[:2]
    assert first == ",".join(CANDLE_SCHEMA)
    assert second.startswith("2024-06-01T00:00:00.000Z,")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_candles(CANDLES, tmp_path / "a.csv")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_candles(CANDLES[:3], tmp_path / "a.csv")
    monkeypatch.undo()
    assert read_candles(tmp_path / "a.csv", HOUR).equals(CANDLES)


@pytest.mark.parametrize(
    "name", ["timestamp", "timestamps", "open_time", "date", "Open Time", "DateTime", "time"]
)
@pytest.mark.parametrize("amount", [None, "amount", "quote_volume", "Quote asset volume"])
def test_headers_go_by_many_names(tmp_path, name, amount):
    header = ["symbol", name, "Open", "High", "Low", "Close", "Volume", *([amount] if amount else [])]
    row = ["BTCUSDT", str(JUNE_MS), "1", "2", "0.5", "1.5", "10", *(["15"] if amount else [])]
    candles = read_candles(write_rows(tmp_path / "a.csv", [row], ",".join(header)), HOUR)
    assert dict(candles.schema) == CANDLE_SCHEMA
    assert candles["open_time"].dt.epoch("ms").to_list() == [JUNE_MS]
    assert candles.select("open", "high", "low", "close", "volume").row(0) == (1.0, 2.0, 0.5, 1.5, 10.0)
    assert candles["quote_volume"].to_list() == [15.0 if amount else None]
    assert candles["close_time"].dt.epoch("ms").to_list() == [JUNE_MS + HOUR_MS - 1]


def test_of_several_times_the_one_that_says_open_time_counts(tmp_path):
    path = write_rows(
        tmp_path / "a.csv",
        [["first of June", "1", "2", "0.5", "1.5", "10", str(JUNE_MS)]],
        "date,open,high,low,close,volume,open_time",
    )
    assert read_candles(path, HOUR)["open_time"].dt.epoch("ms").to_list() == [JUNE_MS]


@pytest.mark.parametrize(
    "text",
    [
        "2024-06-01 13:00:00",
        "2024-06-01T13:00:00",
        "2024-06-01T13:00:00Z",
        "2024-06-01T13:00:00.000Z",
        "2024-06-01 13:00:00 UTC",
        "2024-06-01 13:00:00+00:00",
        "2024-06-01T15:00:00+02:00",
        "2024-06-01T08:00:00.000-0500",
        "2024-06-01 13:00",
        "2024/06/01 13:00",
        "2024/6/1 13:00:00",
        "1717246800000",
        "1717246800000.0",
        "1.7172468E+12",
        "1717246800000000",
        ' "1717246800000" ',
    ],
)
def test_a_time_reads_however_it_is_written(tmp_path, text):
    path = simple_csv(tmp_path / "a.csv", [text.strip() if '"' in text else text])
    assert read_candles(path, HOUR)["open_time"].dt.epoch("ms").to_list() == [JUNE_MS + 13 * HOUR_MS]


def test_days_may_be_written_as_dates(tmp_path):
    path = simple_csv(tmp_path / "a.csv", ["2024-06-01", "2024-06-02"], "date,open,high,low,close,volume")
    day = Interval("1d")
    assert read_candles(path, day)["open_time"].dt.epoch("ms").to_list() == [JUNE_MS, JUNE_MS + 24 * HOUR_MS]


@pytest.mark.parametrize(
    "text", ["01.06.2024 13:00", "06/01/2024 13:00", "yesterday", "2024-13-01 00:00", ""]
)
def test_a_time_that_does_not_read_is_named(tmp_path, text):
    path = simple_csv(tmp_path / "a.csv", ["2024-06-01 00:00", text])
    found = repr(text) if text else "None"
    assert f"or a date such as 2024-06-01 13:00, found {found} in row 2; write it so" in refusal(path)


def test_seconds_are_refused_as_seconds(tmp_path):
    text = refusal(simple_csv(tmp_path / "a.csv", ["1717200000", "1717203600"]))
    assert "expected open_time in milliseconds since 1970, found 1717200000 in row 1" in text
    assert "looks like seconds (2024-06-01 00:00:00 UTC); multiply by 1000" in text


def test_nanoseconds_are_refused_as_nanoseconds(tmp_path):
    text = refusal(simple_csv(tmp_path / "a.csv", ["1717200000000000000"]))
    assert "looks like nanoseconds; divide by 1000000" in text


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    contents = {"csv": ["", "\n\n", HEADER + "\n"], "json": ["", "[]"]}[suffix]
    for content in contents:
        (tmp_path / f"a.{suffix}").write_text(content)
        assert "found an empty file" in refusal(tmp_path / f"a.{suffix}")


def test_an_empty_parquet_is_refused(tmp_path):
    CANDLES.clear().write_parquet(tmp_path / "a.parquet")
    assert "found an empty file" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.xlsx", "a.csv.zip"])
def test_an_unknown_suffix_is_refused_for_reading_and_writing(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert f"expected a file that ends in .csv, .json, .parquet, found {name}" in refusal(tmp_path / name)
    with pytest.raises(CandleError, match="expected a file that ends in"):
        write_candles(CANDLES, tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "found none; correct the path" in refusal(tmp_path / "a.csv")


def test_a_missing_column_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.csv", [[str(JUNE_MS), "1", "2", "1"]], "timestamp,open,high,low")
    assert "found open_time, open, high, low; add close, volume" in refusal(path)


def test_a_table_without_header_that_is_not_binances_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.csv", [[str(JUNE_MS), "1", "2", "0.5", "1.5", "10"]])
    assert "found 6 columns without a header; add one" in refusal(path)


def test_rows_of_different_lengths_are_refused(tmp_path):
    rows = binance_rows()
    rows[7].append("more")
    assert "expected comma-separated text with as many fields in every row" in refusal(
        write_rows(tmp_path / "a.csv", rows)
    )


def test_text_that_is_no_number_is_named(tmp_path):
    rows = binance_rows()
    rows[7][4] = "1,5".replace(",", "'")
    text = refusal(write_rows(tmp_path / "a.csv", rows))
    assert 'expected a number in close, found "1\'5" in row 8 at open_time 2024-06-01 07:00:00 UTC' in text


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        (4, "NaN", "expected a finite number in close"),
        (4, "", "expected a finite number in close"),
        (5, "-1", "expected volume >= 0"),
        (2, "0.0001", "expected high >= low"),
        (1, "0", "expected open above 0"),
        (9, "nan", "expected taker_buy_volume >= 0 or null"),
    ],
)
def test_a_bad_value_is_named_with_its_row(tmp_path, column, value, rule):
    rows = binance_rows()
    rows[3][column] = value
    text = refusal(write_rows(tmp_path / "a.csv", rows))
    assert rule in text
    assert "found row 4 with open_time 2024-06-01 03:00:00 UTC" in text


def test_duplicates_are_refused_and_not_dropped(tmp_path):
    rows = binance_rows()
    text = refusal(write_rows(tmp_path / "a.csv", [*rows[:6], rows[5], *rows[6:]]))
    assert "found rows 6 and 7 with open_time 2024-06-01 05:00:00 UTC; keep one of them" in text


def test_unordered_rows_are_refused_and_not_sorted(tmp_path):
    text = refusal(write_rows(tmp_path / "a.csv", binance_rows()[::-1]))
    assert (
        "expected the oldest row first, found row 2 with open_time 2024-06-02 04:00:00 UTC after row 1"
        in text
    )


def test_rows_off_the_grid_are_refused(tmp_path):
    rows = [row[:6] for row in binance_rows()]
    rows[2][0] = str(JUNE_MS + 2 * HOUR_MS + 1)
    text = refusal(write_rows(tmp_path / "a.csv", rows, "timestamp,open,high,low,close,volume"))
    assert (
        "expected open times on the 1h grid (UTC), found row 3 with open_time 2024-06-01 02:00:00.001 UTC"
        in text
    )
    assert "on the 4h grid" in refusal(write_rows(tmp_path / "b.csv", binance_rows()), Interval("4h"))


def test_a_mark_of_byte_order_and_windows_line_ends_do_not_matter(tmp_path):
    text = HEADER + "\r\n" + "\r\n".join(",".join(row) for row in binance_rows()) + "\r\n\r\n"
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_candles(tmp_path / "a.csv", HOUR).equals(CANDLES)


def test_a_binary_file_by_the_name_of_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 20)
    refusal(tmp_path / "a.csv")


def test_the_rest_answer_reads_as_json(tmp_path):
    rows: list[list[object]] = [[int(row[0]), *row[1:6], int(row[6]), *row[7:]] for row in binance_rows()]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_candles(tmp_path / "a.json", HOUR).equals(CANDLES)


def test_records_read_as_json(tmp_path):
    records = [
        {
            "timestamps": "2024-06-01 00:00:00",
            "open": 1,
            "high": "2",
            "low": 0.5,
            "close": 1.5,
            "volume": 1e-7,
        },
        {
            "timestamps": "2024-06-01 01:00:00",
            "open": 1,
            "high": 2,
            "low": 0.5,
            "close": 1.5,
            "volume": 3,
            "amount": 4,
        },
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    candles = read_candles(tmp_path / "a.json", HOUR)
    assert candles["volume"].to_list() == [1e-7, 3.0]
    assert candles["quote_volume"].to_list() == [None, 4.0]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "expected JSON"),
        ('{"a": 1}', "found dict"),
        ("[[1], {}]", "found a mix"),
        ("[[1], [1, 2]]", "found a mix"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    assert found in refusal(tmp_path / "a.json")


@pytest.mark.parametrize(
    "kind", [pl.Int64, pl.Float64, pl.String, pl.Datetime("us"), pl.Datetime("ns", "UTC")]
)
def test_parquet_times_of_every_type_read(tmp_path, kind):
    frame = CANDLES.drop("close_time").with_columns(pl.col("open_time").dt.epoch("ms"))
    if isinstance(kind, pl.Datetime):
        frame = frame.with_columns(pl.from_epoch("open_time", "ms").cast(pl.Datetime(kind.time_unit)))
        if kind.time_zone:
            frame = frame.with_columns(pl.col("open_time").dt.replace_time_zone("UTC"))
    else:
        frame = frame.with_columns(pl.col("open_time").cast(kind))
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_candles(tmp_path / "a.parquet", HOUR).equals(CANDLES)


def test_parquet_dates_read(tmp_path):
    day = Interval("1d")
    candles = full_candles(5, interval=day)
    frame = (
        candles.drop("close_time").with_columns(pl.col("open_time").dt.date()).rename({"open_time": "date"})
    )
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_candles(tmp_path / "a.parquet", day).equals(candles)


def test_parquet_in_seconds_is_refused(tmp_path):
    CANDLES.drop("close_time").with_columns(pl.col("open_time").dt.epoch("s")).write_parquet(
        tmp_path / "a.parquet"
    )
    assert "looks like seconds" in refusal(tmp_path / "a.parquet")


def test_a_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    assert "expected Parquet, found a damaged file" in refusal(tmp_path / "a.parquet")


def test_a_folder_reads_by_the_names_of_its_files(tmp_path):
    write_candles(CANDLES, tmp_path / "um_DOGEUSDT_1h.parquet")
    write_candles(CANDLES[:5], tmp_path / "spot_BTCUSDT_1h.csv")
    write_candles(CANDLES[:6], tmp_path / "um_BTCUSDT_240628_1h.json")
    (tmp_path / "um_DOGEUSDT_5m.parquet").write_text("another interval is not opened")
    (tmp_path / "README.md").write_text("left alone")
    found = read_folder(tmp_path, HOUR)
    assert {str(key): len(frame) for key, frame in found.items()} == {
        "spot:BTCUSDT:1h": 5,
        "um:BTCUSDT_240628:1h": 6,
        "um:DOGEUSDT:1h": 30,
    }


def test_a_folder_with_a_strange_name_two_files_of_a_series_or_none_is_refused(tmp_path):
    with pytest.raises(CandleError, match=r"expected files such as um_DOGEUSDT_1h.parquet in .*, found none"):
        read_folder(tmp_path, HOUR)
    write_candles(CANDLES, tmp_path / "um_DOGEUSDT_1h.parquet")
    write_candles(CANDLES, tmp_path / "um_DOGEUSDT_1h.csv")
    with pytest.raises(
        CandleError, match=r"expected one file of um:DOGEUSDT:1h, found .*csv and .*parquet; remove one"
    ):
        read_folder(tmp_path, HOUR)
    (tmp_path / "a_doge.csv").touch()
    with pytest.raises(CandleError, match=r"found a_doge.csv .*; rename it"):
        read_folder(tmp_path, HOUR)


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    write_rows(tmp_path / "um_DOGEUSDT_1h.csv", binance_rows()[::-1])
    with pytest.raises(CandleError, match=r"um_DOGEUSDT_1h.csv: expected the oldest row first"):
        read_folder(tmp_path, HOUR)


def test_real_candles_read_and_survive_the_lake(shared_data, tmp_path):
    from storage.lake import Lake
    from storage.ledger import Source
    from storage.schema import SeriesKey

    candles = read_candles(shared_data / "um_DOGEUSDT_1h.parquet", HOUR)
    raw = pl.read_parquet(shared_data / "um_DOGEUSDT_1h.parquet")
    assert candles.height == raw.height == 34_492
    key = SeriesKey.parse("um:DOGEUSDT", "1h")
    lake = Lake(tmp_path)
    lake.upsert(key, candles, source=Source("import", "um_DOGEUSDT_1h.parquet"))
    stored = lake.read(key).with_columns(pl.col("open_time").dt.epoch("ms")).select(raw.columns)
    assert stored.equals(raw)
