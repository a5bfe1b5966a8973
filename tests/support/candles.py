"""Seeded candles with all columns, at any interval, and a second Python process."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from storage.forecasts import ForecastQuestion
from storage.interval import Interval
from storage.schema import SeriesKey, validate_candles

ROOT = Path(__file__).resolve().parents[2]
HOUR = Interval("1h")
HOUR_MS = 3_600_000
JUNE_MS = 1_717_200_000_000  # 2024-06-01 00:00 UTC
BTC = SeriesKey("spot", "BTCUSDT", HOUR)


def full_candles(
    count: int, *, start_ms: int = JUNE_MS, interval: Interval = HOUR, seed: int = 0
) -> pl.DataFrame:
    """A valid gapless random walk from `start_ms`, every column filled."""
    rng = np.random.default_rng(seed)
    opened = [start_ms]
    for _ in range(count - 1):
        opened.append(interval.next(opened[-1]))
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, (count + 1,))))
    first, last = prices[:-1], prices[1:]
    volume = rng.lognormal(3, 1, count)
    frame = pl.DataFrame(
        {
            "open_time": pl.Series(opened, dtype=pl.Int64).cast(pl.Datetime("ms", "UTC")),
            "open": first,
            "high": np.maximum(first, last) * (1 + rng.exponential(0.002, count)),
            "low": np.minimum(first, last) * (1 - rng.uniform(0, 0.005, count)),
            "close": last,
            "volume": volume,
            "quote_volume": volume * (first + last) / 2,
            "trades": rng.integers(0, 5000, count),
            "taker_buy_volume": volume * 0.5,
            "taker_buy_quote_volume": volume * 0.5 * last,
        }
    )
    return validate_candles(frame, interval, origin="synthetic candles")


@contextmanager
def second_process(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Another Python that runs `code`; the block starts at its first output and ends it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the second process said nothing"
            yield process
        finally:
            process.kill()


def asked(key: SeriesKey, origin_ms: int, model: str, **changed: Any) -> ForecastQuestion:
    """A question to a model; what is left out is the same in all."""
    told = {
        "tokenizer_digest": "cd" * 8,
        "seen": "ef" * 8,
        "lookback": 32,
        "horizon": 12,
        "sampling": {"samples": 20, "temperature": 1.0},
        "seed": 0,
        "code": "00" * 8,
        **changed,
    }
    return ForecastQuestion(key=key, origin_ms=origin_ms, model_digest=model, **told)
