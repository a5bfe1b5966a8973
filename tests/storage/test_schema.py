"""Keys and the rules of candles: every broken rule is one sentence that names the row."""

import polars as pl
import pytest

from storage.errors import CandleError
from storage.interval import INTERVALS, Interval
from storage.schema import CANDLE_SCHEMA, SeriesKey, utc_text, validate_candles
from tests.support.candles import HOUR, HOUR_MS, JUNE_MS, full_candles


def altered(column: str, row: int, value: float | None) -> pl.DataFrame:
    frame = full_candles(24)
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))


def shifted(row: int, by_ms: int) -> pl.DataFrame:
    frame = full_candles(24).drop("close_time")
    at = pl.int_range(pl.len()) == row
    return frame.with_columns(
        pl.when(at)
        .then(pl.col("open_time") + pl.duration(milliseconds=by_ms))
        .otherwise("open_time")
        .alias("open_time")
    )


def refusal(frame: pl.DataFrame, interval: Interval = HOUR) -> str:
    with pytest.raises(CandleError) as caught:
        validate_candles(frame, interval, origin="candles.csv")
    text = str(caught.value)
    assert text.startswith("candles.csv: expected ")
    assert ", found " in text
    assert "; " in text
    assert "\n" not in text
    return text


def test_a_key_reads_and_writes_itself():
    key = SeriesKey.parse("um:DOGEUSDT", "1h")
    assert (str(key), key.name, key.slug) == ("um:DOGEUSDT:1h", "um:DOGEUSDT", "um-DOGEUSDT-1h")
    assert key == SeriesKey("um", "DOGEUSDT", Interval("1h"))
    assert SeriesKey.parse("um:BTCUSDT_240628", "1M").slug == "um-BTCUSDT_240628-1mo"
    assert SeriesKey.parse("um:币安人生USDT", "1h").symbol == "币安人生USDT"


def test_keys_sort_by_market_symbol_and_length():
    names = [("spot:BTCUSDT", "5m"), ("spot:BTCUSDT", "1h"), ("spot:ETHUSDT", "1m"), ("um:BTCUSDT", "1m")]
    keys = [SeriesKey.parse(*name) for name in names]
    assert sorted({*keys}) == keys


@pytest.mark.parametrize(
    "name", ["BTCUSDT", "cm:BTCUSDT", "spot:btcusdt", "spot:", "spot:../up", "spot:BTC/USDT", "spot:A B"]
)
def test_a_key_that_is_none_is_refused(name):
    with pytest.raises(CandleError, match=r"^expected .*, found .*; write "):
        SeriesKey.parse(name, "1h")


@pytest.mark.parametrize("name", INTERVALS)
def test_good_candles_pass_unchanged_at_every_interval(name):
    interval = Interval(name)
    frame = full_candles(30, start_ms=interval.floor(JUNE_MS), interval=interval)
    assert validate_candles(frame, interval, origin="test").equals(frame)
    assert dict(frame.schema) == CANDLE_SCHEMA
    closes = [interval.close(ms) for ms in frame["open_time"].dt.epoch("ms")]
    assert frame["close_time"].dt.epoch("ms").to_list() == closes


def test_columns_come_back_in_order_with_what_is_absent_filled():
    bare = full_candles(5).select("volume", "close", "low", "high", "open", "open_time")
    candles = validate_candles(bare, HOUR, origin="test")
    assert dict(candles.schema) == CANDLE_SCHEMA
    assert candles["trades"].null_count() == 5
    assert candles["close_time"].dt.epoch("ms").to_list() == [
        JUNE_MS + HOUR_MS * (i + 1) - 1 for i in range(5)
    ]


def test_integers_microseconds_and_naive_times_become_the_types_of_candles():
    frame = full_candles(5).with_columns(
        pl.col("open_time").dt.cast_time_unit("us").dt.replace_time_zone(None),
        pl.col("volume").round().cast(pl.Int32),
    )
    candles = validate_candles(frame, HOUR, origin="test")
    assert dict(candles.schema) == CANDLE_SCHEMA
    assert candles["open_time"].equals(full_candles(5)["open_time"])


def test_times_of_another_zone_become_utc():
    frame = full_candles(5).with_columns(pl.col("open_time").dt.convert_time_zone("Asia/Tokyo"))
    assert validate_candles(frame, HOUR, origin="test").equals(full_candles(5))


def test_no_rows_are_fine():
    assert validate_candles(full_candles(1).clear(), HOUR, origin="test").height == 0


def test_minus_zero_becomes_zero_so_that_equal_candles_have_equal_bytes():
    candles = validate_candles(altered("volume", 3, -0.0), HOUR, origin="test")
    assert str(candles["volume"][3]) == "0.0"


def test_a_missing_column_is_refused():
    assert refusal(full_candles(3).drop("low")).endswith("; add low")


def test_an_unknown_column_is_refused():
    assert "found quotevolume;" in refusal(full_candles(3).rename({"quote_volume": "quotevolume"}))


def test_numbers_for_times_and_words_for_numbers_are_refused():
    assert "expected open_time as Datetime" in refusal(full_candles(3).with_columns(open_time=pl.lit(1)))
    assert "expected numbers in open" in refusal(full_candles(3).with_columns(open=pl.lit("1.0")))


def test_duplicate_rows_are_named():
    frame = full_candles(24)
    text = refusal(pl.concat([frame, frame[5]]))
    assert "found rows 6 and 25 with open_time 2024-06-01 05:00:00 UTC; keep one" in text
    assert "(and 23 more such times)" in refusal(pl.concat([frame, frame]))


def test_unordered_rows_are_named():
    frame = full_candles(24)
    text = refusal(pl.concat([frame[:3], frame[4], frame[3], frame[5:]]))
    assert (
        "found row 5 with open_time 2024-06-01 03:00:00 UTC after row 4 with 2024-06-01 04:00:00 UTC" in text
    )
    assert text.endswith("sort the rows by open_time")


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_refused(column, value):
    text = refusal(altered(column, 7, value))
    assert f"expected a finite number in {column}, found row 8 with open_time 2024-06-01 07:00:00 UTC" in text


@pytest.mark.parametrize("column", ["volume", "quote_volume", "trades", "taker_buy_volume"])
def test_a_negative_volume_is_refused(column):
    text = refusal(altered(column, 2, -1))
    assert f"expected {column} >= 0" in text
    assert "row 3 with open_time 2024-06-01 02:00:00 UTC" in text


def test_nan_in_an_optional_column_is_refused_and_null_is_not():
    assert "quote_volume >= 0 or null" in refusal(altered("quote_volume", 2, float("nan")))
    assert (
        validate_candles(altered("quote_volume", 2, None), HOUR, origin="test")["quote_volume"].null_count()
        == 1
    )


def test_prices_out_of_order_are_refused():
    frame = full_candles(24)
    assert "expected high >= low, found row 1 " in refusal(frame.rename({"high": "low", "low": "high"}))
    assert "expected low <= open <= high, found row 5 " in refusal(altered("open", 4, 1e9))
    assert "expected low <= close <= high, found row 24 " in refusal(altered("close", 23, 1e-9))
    assert "expected low above 0, found row 1 " in refusal(altered("low", 0, 0.0))


def test_the_number_of_broken_rows_is_told():
    assert "(and 23 more such rows)" in refusal(full_candles(24).with_columns(volume=pl.lit(-1.0)))


def test_a_row_off_the_grid_is_refused():
    text = refusal(shifted(9, 14_789))
    assert (
        "expected open times on the 1h grid (UTC), found row 10 with open_time 2024-06-01 09:00:14.789 UTC"
        in text
    )
    assert "expected open times on the 2h grid" in refusal(full_candles(4).drop("close_time"), Interval("2h"))
    assert "on the 1w grid" in refusal(
        full_candles(4, interval=Interval("1d")).drop("close_time"), Interval("1w")
    )
    assert "on the 1M grid" in refusal(
        full_candles(4, interval=Interval("1d")).drop("close_time"), Interval("1M")
    )


@pytest.mark.parametrize("value", [JUNE_MS - 1, JUNE_MS + HOUR_MS, None])
def test_a_close_time_outside_its_candle_is_refused(value):
    frame = full_candles(1).with_columns(close_time=pl.lit(value, pl.Int64).cast(pl.Datetime("ms", "UTC")))
    assert "expected a close_time within the 1h candle, found row 1 " in refusal(frame)


def test_a_row_without_time_is_refused():
    frame = full_candles(3).with_columns(
        pl.Series("open_time", [JUNE_MS, None, JUNE_MS]).cast(pl.Datetime("ms", "UTC"))
    )
    assert "found row 2 with no open_time" in refusal(frame)


def test_times_are_written_in_utc_with_milliseconds_only_where_there_are_some():
    assert utc_text(JUNE_MS) == "2024-06-01 00:00:00 UTC"
    assert utc_text(JUNE_MS + 7) == "2024-06-01 00:00:00.007 UTC"
