"""The next horizon of every series, sampled from the serving model, stored and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import task

from kronos_model.forecaster import Forecaster
from kronos_model.sampling import SamplingConfig
from storage.errors import StorageError
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.schema import SeriesKey, utc_text
from tasks.evaluate import forecaster
from tasks.figures import draw_forecast
from tasks.policies import IDEMPOTENT
from tasks.refs import BuiltDataset, ForecastRef, PairRef

__all__ = ["forecast"]

QUANTILES = tuple(round(0.05 * step, 2) for step in range(1, 20))
_CLOSE = 3
_SHOWN_CONTEXT = 96


@dataclass(frozen=True, slots=True)
class _Past:
    """The newest closed candles of one series."""

    key: SeriesKey
    features: NDArray[np.float32]  # (C, 6)
    open_time: NDArray[np.int64]  # (C,) ms
    future: NDArray[np.int64]  # (H,) ms


@task(name="forecast", task_run_name="forecast", **IDEMPOTENT)
def forecast(
    home: Home,
    keys: Sequence[SeriesKey],
    model: PairRef,
    config: SamplingConfig,
    *,
    lookback: int,
    horizon: int,
    dataset: BuiltDataset | None,
    seed: int,
) -> tuple[ForecastRef, ...]:
    """Forecast all `keys` in one call of the sampler; a forecast that is already stored is not made again."""
    store, lake = ForecastStore(home.forecasts), Lake(home.lake)
    pasts = [_past(lake, key, lookback, horizon) for key in keys]
    stored = {
        past.key: store.find(past.key, int(past.open_time[-1]), model.predictor_digest) for past in pasts
    }
    missing = [past for past in pasts if stored[past.key] is None]
    if missing:
        predictor = forecaster(model, dataset)
        closes = _sample(predictor, missing, config, seed)
        for past, paths in zip(missing, closes, strict=True):
            _store(store, past, paths, model)
            _draw(home, past, paths, model)
    made = {past.key for past in missing}
    return tuple(_reference(home, store, past, model, made=past.key in made) for past in pasts)


def _past(lake: Lake, key: SeriesKey, lookback: int, horizon: int) -> _Past:
    interval = key.interval
    candles = _newest(lake, key, lookback)
    open_time = candles["open_time"].dt.epoch("ms").to_numpy()
    broken = len(candles) < lookback or interval.count(int(open_time[0]), int(open_time[-1])) != lookback
    if broken:
        raise StorageError(
            f"Expected the newest {lookback} candles of {key} without a hole, found {len(candles)} from "
            f"{utc_text(int(open_time[0]))} to {utc_text(int(open_time[-1]))} with some missing; run `kronos ingest` "
            f"to repair the hole, or shorten dataset.lookback."
        )
    amount = pl.coalesce(
        "quote_volume", pl.col("volume") * pl.mean_horizontal("open", "high", "low", "close")
    )
    features = candles.select("open", "high", "low", "close", "volume", amount.alias("amount"))
    future = [interval.next(int(open_time[-1]))]
    while len(future) < horizon:
        future.append(interval.next(future[-1]))
    return _Past(key, features.to_numpy().astype(np.float32), open_time, np.array(future, dtype=np.int64))


def _newest(lake: Lake, key: SeriesKey, count: int) -> pl.DataFrame:
    """The last `count` candles of a series. Raises LakeError when the lake has none."""
    span = lake.span(key)
    reach_ms = count * (key.interval.milliseconds or 31 * 86_400_000)
    return lake.read(key, None if span is None else span.last_ms - reach_ms).tail(count)


def _sample(model: Forecaster, pasts: list[_Past], config: SamplingConfig, seed: int) -> NDArray[np.float32]:
    """Paths (B, S, H, 6) in prices."""
    return model.paths(
        np.stack([past.features for past in pasts]),
        np.stack([past.open_time for past in pasts]),
        np.stack([past.future for past in pasts]),
        [past.key.name for past in pasts],
        config=config,
        seed=seed,
    ).paths


def _store(store: ForecastStore, past: _Past, paths: NDArray[np.float32], model: PairRef) -> None:
    close = paths[:, :, _CLOSE].astype(np.float64)  # (S, H)
    last = float(past.features[-1, _CLOSE])
    columns = {f"{name}_mean": paths[:, :, i].mean(axis=0, dtype=np.float64) for i, name in enumerate(_NAMES)}
    quantiles = np.quantile(close, QUANTILES, axis=0)  # (Q, H)
    columns |= {
        f"close_q{round(level * 100):02d}": row for level, row in zip(QUANTILES, quantiles, strict=True)
    }
    times = pl.Series("open_time", past.future).cast(pl.Datetime("ms", "UTC"))
    steps = pl.Series("step", np.arange(1, len(past.future) + 1, dtype=np.int32))
    summary = {
        "last_close": last,
        "horizon_end_ms": past.key.interval.close(int(past.future[-1])),
        "close_mean": float(close[:, -1].mean()),
        "close_low": float(quantiles[0, -1]),
        "close_high": float(quantiles[-1, -1]),
        "probability_up": float((close[:, -1] > last).mean()),
        "expected_log_return": float(np.log(close[:, -1] / last).mean()),
        "samples": len(close),
        "model": model.origin,
    }
    frame = pl.DataFrame([times, steps, *(pl.Series(name, values) for name, values in columns.items())])
    store.save(past.key, int(past.open_time[-1]), model.predictor_digest, frame, summary)


_NAMES = ("open", "high", "low", "close", "volume", "amount")


def _draw(home: Home, past: _Past, paths: NDArray[np.float32], model: PairRef) -> None:
    shown = min(_SHOWN_CONTEXT, len(past.open_time))
    draw_forecast(
        title=f"{past.key.name} {past.key.interval}, the next {len(past.future)} candles",
        unit="close (quote currency)",
        context_ms=past.open_time[-shown:],
        context_close=past.features[-shown:, _CLOSE],
        future_ms=past.future,
        closes=paths[:, :, _CLOSE],
        target=_figure(home, past, model),
    )


def _figure(home: Home, past: _Past, model: PairRef) -> Path:
    return (
        home.forecasts / "figures" / f"{past.key.slug}-{int(past.open_time[-1])}-{model.predictor_digest}.png"
    )


def _reference(home: Home, store: ForecastStore, past: _Past, model: PairRef, *, made: bool) -> ForecastRef:
    found = store.find(past.key, int(past.open_time[-1]), model.predictor_digest)
    assert found is not None, "stored above"
    summary = found.summary
    return ForecastRef(
        series=past.key.name,
        path=str(found.path),
        figure=str(_figure(home, past, model)),
        origin_ms=int(past.open_time[-1]),
        last_close=summary["last_close"],
        horizon_end_ms=summary["horizon_end_ms"],
        close_mean=summary["close_mean"],
        close_low=summary["close_low"],
        close_high=summary["close_high"],
        probability_up=summary["probability_up"],
        model=summary["model"],
        made=made,
    )
