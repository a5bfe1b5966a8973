"""The synthetic market: valid, repeatable, and shaped as its description says."""

import numpy as np
import polars as pl
import pytest

from exchange.replay import synthetic_market
from storage.interval import INTERVALS, Interval
from storage.schema import SeriesKey, validate_candles

START = 1_717_372_800_000  # Monday 2024-06-03 00:00 UTC
HOUR = 3_600_000
BTC, DOGE = SeriesKey.parse("spot:BTCUSDT", "1h"), SeriesKey.parse("um:DOGEUSDT", "1h")


@pytest.fixture(scope="module")
def hours() -> pl.DataFrame:
    return synthetic_market([BTC], start_ms=START, count=20_000, seed=11)[BTC]


def moves_of(candles: pl.DataFrame) -> np.ndarray:
    return np.log(candles["close"].to_numpy() / candles["open"].to_numpy())


@pytest.mark.parametrize("name", INTERVALS)
def test_every_interval_has_valid_candles_without_holes(name: str) -> None:
    interval = Interval(name)
    key = SeriesKey("spot", "XYZUSDT", interval)
    start = interval.floor(START)
    candles = synthetic_market([key], start_ms=start, count=300, seed=1)[key]
    assert validate_candles(candles, interval, origin="test").equals(candles)
    opens = candles["open_time"].dt.epoch("ms").to_list()
    assert opens == [start] + [interval.next(ms) for ms in opens[:-1]]
    assert sum(candles.null_count().row(0)) == 0
    assert (candles["taker_buy_volume"] <= candles["volume"]).all()
    assert (candles["trades"] > 0).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(hours: pl.DataFrame) -> None:
    again = synthetic_market([BTC], start_ms=START, count=20_000, seed=11)[BTC]
    assert again.equals(hours)
    assert not synthetic_market([BTC], start_ms=START, count=20_000, seed=12)[BTC].equals(hours)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1001, 4097, 19_999])
def test_more_candles_leave_the_earlier_ones_unchanged(hours: pl.DataFrame, count: int) -> None:
    fewer = synthetic_market([BTC], start_ms=START, count=count, seed=11)[BTC]
    assert fewer.equals(hours.head(count))


def test_other_keys_do_not_change_a_series(hours: pl.DataFrame) -> None:
    both = synthetic_market([DOGE, BTC], start_ms=START, count=500, seed=11)
    assert both[BTC].equals(hours.head(500))


def test_a_misaligned_start_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=f"take {START}"):
        synthetic_market([BTC], start_ms=START + 5, count=3, seed=0)
    with pytest.raises(ValueError, match="count of at least 1"):
        synthetic_market([BTC], start_ms=START, count=0, seed=0)


def test_volatility_comes_in_regimes_that_last(hours: pl.DataFrame) -> None:
    size = np.abs(moves_of(hours))
    daily = size[: len(size) // 24 * 24].reshape(-1, 24).mean(axis=1)
    persistence = np.corrcoef(daily[:-1], daily[1:])[0, 1]
    shuffled = np.random.default_rng(0).permutation(daily)
    assert persistence > 0.4 > abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1])
    kurtosis = np.mean(moves_of(hours) ** 4) / np.mean(moves_of(hours) ** 2) ** 2
    assert kurtosis > 4  # fatter tails than a normal's 3


def test_the_day_has_its_rhythm(hours: pl.DataFrame) -> None:
    size = pl.DataFrame({"hour": hours["open_time"].dt.hour(), "size": np.abs(moves_of(hours))})
    by_hour = size.group_by("hour").agg(pl.col("size").mean()).sort("hour")["size"]
    assert by_hour[15] > 1.5 * by_hour[3]


def test_volume_follows_volatility_and_takers_follow_the_direction(hours: pl.DataFrame) -> None:
    moves = moves_of(hours)
    span = np.log(hours["high"].to_numpy() / hours["low"].to_numpy())
    assert np.corrcoef(np.log(hours["volume"].to_numpy()), np.log(span))[0, 1] > 0.5
    share = (hours["taker_buy_volume"] / hours["volume"]).to_numpy()
    assert np.corrcoef(share, np.sign(moves))[0, 1] > 0.5


def test_symbols_move_together() -> None:
    both = synthetic_market([DOGE, BTC], start_ms=START, count=5000, seed=2)
    assert 0.4 < np.corrcoef(moves_of(both[BTC]), moves_of(both[DOGE]))[0, 1] < 0.8


def test_the_range_of_a_candle_is_that_of_a_random_walk(hours: pl.DataFrame) -> None:
    """A Brownian path has a mean range of twice its mean absolute move (Feller 1951)."""
    span = np.log(hours["high"].to_numpy() / hours["low"].to_numpy())
    assert span.mean() / np.abs(moves_of(hours)).mean() == pytest.approx(2, rel=0.03)


def test_prices_stay_within_bounds_over_very_long_walks() -> None:
    key = SeriesKey.parse("spot:BTCUSDT", "1d")
    candles = synthetic_market([key], start_ms=0, count=20_000, seed=3)[key]
    assert 30_000 / 13 < candles["low"].min() < candles["high"].max() < 30_000 * 15
