"""A synthetic market: invented candles for demos and tests. They say nothing about any real market.

Log prices follow a driftless random walk whose volatility switches between a calm, a normal and a wild
regime (a Markov chain shared by all symbols), with a daily and a weekly rhythm, a common factor that makes
symbols move together, and a little momentum. Highs and lows are those of a Brownian bridge between open and
close; volume, trades and the takers' share follow volatility and direction.
"""

import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate, repeat

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.interval import Interval
from storage.schema import CANDLE_SCHEMA, SeriesKey, validate_candles

__all__ = ["synthetic_market"]

YEAR_MS = 365.25 * 86_400_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
YEARLY_VOLATILITY = 0.6  # of the normal regime; the scale of large coins
REGIME_VOLATILITY = np.array([0.5, 1.0, 2.2])  # calm, normal, wild
REGIME_LENGTH = np.array([120.0, 200.0, 40.0])  # mean candles in a regime
COMMON_SHARE = 0.6  # of a symbol's variance
MOMENTUM = 0.08  # share of the last shock that comes again
WIDEST_MOVE = 2.5  # log price stays within this of its start: neither dust nor infinity
TRADE_USDT = 800.0  # mean size of a trade
HOURLY_TURNOVER_USDT = 2e7
START_PRICES = {"BTC": 3e4, "ETH": 2e3, "BNB": 300.0, "SOL": 50.0, "XRP": 0.5, "DOGE": 0.08, "ADA": 0.4}

Floats = NDArray[np.float64]
Streams = Callable[[str], np.random.Generator]


def synthetic_market(
    keys: Sequence[SeriesKey], *, start_ms: int, count: int, seed: int
) -> dict[SeriesKey, pl.DataFrame]:
    """`count` SYNTHETIC candles per series from `start_ms` (an open time of each interval), without holes.

    The same seed gives the same candles, a larger count only appends to them, and other keys beside a key do
    not change it. Series of one symbol in two intervals or markets are separate inventions: store the finest
    and let the replay aggregate it.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1 candle, found {count}")
    return {key: _series(key, start_ms=start_ms, count=count, seed=seed) for key in keys}


def _series(key: SeriesKey, *, start_ms: int, count: int, seed: int) -> pl.DataFrame:
    open_ms = _open_times(key.interval, start_ms, count)
    close_ms = np.append(open_ms[1:], key.interval.next(int(open_ms[-1]))) - 1
    own, common = _streams(seed, str(key)), _streams(seed, f"*:{key.interval}")
    sigma = _volatility(common, open_ms, float(close_ms[0] + 1 - open_ms[0]))
    mix = np.sqrt([COMMON_SHARE, 1 - COMMON_SHARE])
    shock = mix[0] * common("factor").standard_normal(count)
    shock += mix[1] * own("shock").standard_normal(count)
    moves = sigma * (shock + MOMENTUM * np.append(0.0, shock[:-1]))
    walk = np.append(0.0, np.cumsum(moves))
    log_price = WIDEST_MOVE * np.tanh(walk / WIDEST_MOVE)  # (T + 1,)
    opens, closes = log_price[:-1], log_price[1:]
    highs = _bridge_maximum(opens, closes, sigma, own("high").random(count))
    lows = -_bridge_maximum(-opens, -closes, sigma, own("low").random(count))
    start = _start_price(key.symbol)
    decimals = max(0, 5 - int(np.floor(np.log10(start))))
    prices = [np.round(start * np.exp(part), decimals) for part in (opens, highs, lows, closes)]  # 4 x (T,)
    turnover = _turnover(own, prices, sigma=sigma, shock=shock, hours=(close_ms - open_ms + 1) / HOUR_MS)
    columns = dict(zip(("open", "high", "low", "close"), prices, strict=True))
    frame = pl.DataFrame({"open_time": open_ms, "close_time": close_ms, **columns, **turnover})
    frame = frame.with_columns(pl.col("open_time", "close_time").cast(CANDLE_SCHEMA["open_time"]))
    return validate_candles(frame, key.interval, origin=f"synthetic {key}")


def _streams(seed: int, owner: str) -> Streams:
    """Independent random streams by purpose. A stream is drawn in order, so its start never changes."""
    return lambda purpose: np.random.default_rng([seed, zlib.crc32(f"{owner}:{purpose}".encode())])


def _open_times(interval: Interval, start_ms: int, count: int) -> NDArray[np.int64]:
    if interval.floor(start_ms) != start_ms:
        raise ValueError(
            f"expected a start that opens a {interval} candle, found {start_ms}; "
            f"take {interval.floor(start_ms)}"
        )
    if interval.milliseconds is not None:
        return start_ms + interval.milliseconds * np.arange(count, dtype=np.int64)
    months = accumulate(repeat(start_ms, count), lambda ms, _: interval.next(ms))
    return np.fromiter(months, np.int64, count)


def _volatility(common: Streams, open_ms: NDArray[np.int64], length_ms: float) -> Floats:
    """Standard deviation of the log move of each candle: regime x hour of day x weekend."""
    count = len(open_ms)
    regime = _regimes(common("regimes"), common("lengths"), count)
    scale = YEARLY_VOLATILITY * np.sqrt(length_ms / YEAR_MS) * REGIME_VOLATILITY[regime]
    if length_ms < DAY_MS:  # most is traded while Europe and America are awake
        hour = (open_ms % DAY_MS) / HOUR_MS
        scale = scale * (1 + 0.35 * np.cos(2 * np.pi * (hour - 15) / 24))
    if length_ms <= DAY_MS:
        weekday = (open_ms // DAY_MS + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
        scale = scale * np.where(weekday >= 5, 0.75, 1.0)
    return np.asarray(scale, dtype=np.float64)


def _regimes(changes: np.random.Generator, lengths: np.random.Generator, count: int) -> NDArray[np.int64]:
    """A Markov chain of three states: geometric sojourns, then one of the two other states."""
    steps = changes.integers(1, 3, size=count)
    states = np.append(1, 1 + np.cumsum(steps))[:count] % 3
    stays = 1 + np.floor(np.log(1 - lengths.random(count)) / np.log1p(-1 / REGIME_LENGTH[states]))
    ends = np.cumsum(stays)
    needed = int(np.searchsorted(ends, count)) + 1
    return np.repeat(states[:needed], stays[:needed].astype(np.int64))[:count]


def _bridge_maximum(start: Floats, end: Floats, sigma: Floats, uniform: Floats) -> Floats:
    """Maximum of a Brownian bridge, exact: P(max > m) = exp(-2 (m - start) (m - end) / sigma^2)."""
    move = end - start
    return start + (move + np.sqrt(move**2 - 2 * sigma**2 * np.log(1 - uniform))) / 2


def _turnover(
    own: Streams, prices: list[Floats], *, sigma: Floats, shock: Floats, hours: Floats
) -> dict[str, NDArray[np.generic]]:
    """Volume, trades and the takers' share: more in volatile candles, buyers ahead when the price rises."""
    count = len(sigma)
    usual = YEARLY_VOLATILITY * np.sqrt(hours * HOUR_MS / YEAR_MS)
    noise = np.exp(0.35 * own("volume").standard_normal(count))
    quote = HOURLY_TURNOVER_USDT * hours * (sigma / usual) ** 1.2 * (1 + 0.5 * np.abs(shock)) * noise
    mean = (prices[0] + prices[1] + prices[2] + prices[3]) / 4
    volume = np.round(quote / mean, 3)
    quote = np.round(volume * mean, 4)
    trades = np.ceil(quote / TRADE_USDT * np.exp(0.2 * own("trades").standard_normal(count)))
    lean = 0.12 * np.tanh(shock) + 0.03 * own("takers").standard_normal(count)
    share = np.clip(0.5 + lean, 0.05, 0.95)
    return {
        "volume": volume,
        "quote_volume": quote,
        "trades": trades.astype(np.int64),
        "taker_buy_volume": np.round(volume * share, 3),
        "taker_buy_quote_volume": np.round(quote * share, 4),
    }


def _start_price(symbol: str) -> float:
    known = next((price for base, price in START_PRICES.items() if symbol.startswith(base)), None)
    return known or float(10 ** (zlib.crc32(symbol.encode()) % 4000 / 1000 - 1))  # from 0.1 to 1000
