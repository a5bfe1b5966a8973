"""The past that a model sees: whole, in order, with its future; or a sentence."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kronos_model.features import FEATURES
from storage.interval import Interval
from storage.lake import Lake
from storage.ledger import Hole, Ledger, Source
from storage.past import PastError, closes_before, features_of, following, newest, newest_past, past_of
from storage.schema import SeriesKey
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, full_candles

SOURCE = Source(kind="import", detail="test")
DAILY = SeriesKey("spot", "BTCUSDT", Interval("1d"))


def put(root: Path, key: SeriesKey, candles: pl.DataFrame) -> tuple[Lake, Ledger]:
    Lake(root).upsert(key, candles, source=SOURCE)
    return Lake(root), Ledger(root)


def test_it_is_the_newest_candles_in_the_order_of_the_features_and_what_follows(tmp_path: Path) -> None:
    candles = full_candles(40)
    past = newest_past(*put(tmp_path, BTC, candles), BTC, lookback=24, horizon=3, history=24)
    names = [name if name != "amount" else "quote_volume" for name in FEATURES]
    expected = np.array(
        [[np.float32(row[name]) for name in names] for row in candles.tail(24).iter_rows(named=True)]
    )
    assert past.features.dtype == np.float32
    np.testing.assert_array_equal(past.features, expected)
    assert past.open_time.tolist() == [JUNE_MS + hour * HOUR_MS for hour in range(16, 40)]
    assert past.future.tolist() == [JUNE_MS + hour * HOUR_MS for hour in range(40, 43)]
    assert past.origin_ms == JUNE_MS + 39 * HOUR_MS
    assert past.last_close == float(np.float32(candles["close"][-1]))


@pytest.mark.parametrize("gone", [16, 17, 30, 38])
def test_one_missing_candle_is_not_forecast_over(tmp_path: Path, gone: int) -> None:
    candles = full_candles(40)
    holed = pl.concat([candles[:gone], candles[gone + 1 :]])
    lake, ledger = put(tmp_path, BTC, holed)
    with pytest.raises(
        PastError, match=r"newest 24 candles of spot:BTCUSDT:1h without a hole.*`kronos ingest`"
    ):
        newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=24)


def test_a_hole_before_the_lookback_does_no_harm(tmp_path: Path) -> None:
    candles = full_candles(40)
    lake, ledger = put(tmp_path, BTC, pl.concat([candles[:15], candles[16:]]))
    assert len(newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=24).open_time) == 24


def test_fewer_candles_than_the_lookback_are_told_with_their_number(tmp_path: Path) -> None:
    lake, ledger = put(tmp_path, BTC, full_candles(23))
    with pytest.raises(PastError, match=r"newest 24 candles .* found 23 from 2024-06-01 00:00:00 UTC"):
        newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=24)


def test_a_tail_that_the_exchange_did_not_have_is_stale(tmp_path: Path) -> None:
    lake, ledger = put(tmp_path, BTC, full_candles(40))
    tail = Hole(start_ms=JUNE_MS + 40 * HOUR_MS, end_ms=JUNE_MS + 90 * HOUR_MS, candles=50, status="stale")
    ledger.set_tail(BTC, tail)
    with pytest.raises(PastError, match=r"no candle after 2024-06-02 15:00:00 UTC.*halted or delisted"):
        newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=24)
    ledger.set_tail(BTC, None)
    newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=24)


@pytest.mark.parametrize("count", [1, 20, 31, 62, 100, 200, 400, 1_000])
def test_the_newest_candles_reach_back_as_many_months_as_it_takes(tmp_path: Path, count: int) -> None:
    start_ms = int(datetime(2023, 1, 20, tzinfo=UTC).timestamp() * 1000)
    candles = full_candles(400, start_ms=start_ms, interval=DAILY.interval)
    lake, _ = put(tmp_path, DAILY, candles)
    assert newest(lake, DAILY, count).equals(candles.tail(count))
    before = int(candles["open_time"].dt.epoch("ms")[250])
    assert newest(lake, DAILY, count, end_ms=before).equals(candles[:250].tail(count))


def test_an_unknown_quote_volume_is_volume_times_the_mean_price() -> None:
    candles = full_candles(5).with_columns(
        quote_volume=pl.when(pl.int_range(5) == 2).then(None).otherwise("quote_volume")
    )
    found = features_of(candles)[:, FEATURES.index("amount")]
    for at, row in enumerate(candles.iter_rows(named=True)):
        naive = row["volume"] * (row["open"] + row["high"] + row["low"] + row["close"]) / 4
        assert found[at] == pytest.approx(naive if at == 2 else row["quote_volume"], rel=1e-6)


def test_prices_alone_have_neither_volume_nor_amount() -> None:
    candles = full_candles(5)
    alone, all_six = features_of(candles, prices_only=True), features_of(candles)
    np.testing.assert_array_equal(alone[:, :4], all_six[:, :4])
    assert not alone[:, 4:].any()


def test_months_follow_months_of_any_length() -> None:
    def at(text: str) -> int:
        return int(np.datetime64(text, "ms").astype(np.int64))

    assert following(Interval("1M"), at("2024-01-01"), 3).tolist() == [
        at("2024-02-01"),
        at("2024-03-01"),
        at("2024-04-01"),
    ]


def test_no_candle_at_all_is_told() -> None:
    with pytest.raises(PastError, match="found none"):
        past_of(BTC, full_candles(1).clear(), lookback=2, horizon=1, history=2)


def test_the_history_reaches_further_back_and_keeps_the_close_before_a_hole(tmp_path: Path) -> None:
    candles = full_candles(40)
    lake, ledger = put(tmp_path, BTC, pl.concat([candles[:10], candles[12:]]))
    past = newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=44)
    closes = candles["close"].cast(pl.Float32).cast(pl.Float64).to_numpy().copy()
    closes[10:12] = closes[9]
    assert np.isnan(past.history[:4]).all()
    np.testing.assert_array_equal(past.history[4:], closes)
    shorter = newest_past(lake, ledger, BTC, lookback=24, horizon=3, history=29).history
    np.testing.assert_array_equal(shorter, closes[11:])


def test_months_have_a_history_of_the_candles_that_there_are() -> None:
    opened = np.array(["2024-01-01", "2024-02-01", "2024-03-01"], "datetime64[ms]").astype(np.int64)
    closes = np.array([1.0, 2.0, 3.0], np.float32)
    month = Interval("1M")
    assert closes_before(month, opened, closes, 2).tolist() == [2.0, 3.0]
    np.testing.assert_array_equal(closes_before(month, opened, closes, 4), [np.nan, 1.0, 2.0, 3.0])
