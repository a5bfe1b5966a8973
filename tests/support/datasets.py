"""Seeded candles and small datasets for tests of whatever reads windows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from kronos_model.clipping import clipped_shares
from kronos_model.features import calendar_stamps, fit_state
from storage.dataset import BuiltDataset, DatasetConfig, build_dataset
from storage.interval import Interval
from storage.schema import SeriesKey, validate_candles

HOUR_MS = 3_600_000
START_MS = 1_594_371_600_000  # 2020-07-10 09:00 UTC, the first DOGEUSDT futures candle


def make_candles(
    rows: int,
    *,
    seed: int = 0,
    start_ms: int = START_MS,
    interval: str = "1h",
    missing: Sequence[int] = (),
    without_amount: Sequence[int] = (),
) -> pl.DataFrame:
    """A valid random walk of rows candles less the missing ones; without_amount rows have no quote volume."""
    rng = np.random.default_rng(seed)
    parsed = Interval(interval)
    close = 0.1 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[0.1], close[:-1]])
    high = np.maximum(opened, close) * (1 + rng.exponential(0.002, rows))
    low = np.minimum(opened, close) * (1 - rng.uniform(0, 0.005, rows))
    volume = rng.lognormal(12, 1, rows)
    amount = volume * (opened + high + low + close) / 4 * rng.uniform(0.99, 1.01, rows)
    times = start_ms + np.arange(rows, dtype=np.int64) * (parsed.milliseconds or 0)
    frame = pl.DataFrame(
        {
            "open_time": pl.Series(times).cast(pl.Datetime("ms", "UTC")),
            "open": opened,
            "high": high,
            "low": low,
            "close": close,
            "volume": volume,
            "quote_volume": amount,
        }
    ).with_row_index()
    frame = frame.with_columns(
        pl.when(~pl.col("index").is_in(list(without_amount)))
        .then(pl.col("quote_volume"))
        .alias("quote_volume")
    )
    frame = frame.filter(~pl.col("index").is_in(list(missing))).drop("index")
    return validate_candles(frame, parsed, origin="synthetic candles")


def real_candles(folder: Path, name: str) -> pl.DataFrame:
    """Real hourly candles by series name, such as um:DOGEUSDT, from the shared_data folder."""
    path = folder / f"{name.replace(':', '_')}_1h.parquet"
    frame = pl.read_parquet(path).with_columns(pl.col("open_time").cast(pl.Datetime("ms", "UTC")))
    return validate_candles(frame, Interval("1h"), origin=path.name)


def build(
    candles: dict[str, pl.DataFrame], config: DatasetConfig, root: Path, *, interval: str = "1h"
) -> BuiltDataset:
    """The dataset of these candles by series name, such as um:DOGEUSDT, as the dataset task builds it."""
    keyed = {SeriesKey.parse(name, interval): frame for name, frame in candles.items()}
    return build_dataset(
        keyed,
        config,
        root,
        stamp=calendar_stamps,
        fit=lambda rows: fit_state(config.normaliser, rows),
        clipped=clipped_shares,
    )
