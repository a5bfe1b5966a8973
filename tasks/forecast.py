"""The next horizon of every series, sampled from the serving model, stored and drawn."""

from __future__ import annotations

import logging
import time
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
from storage.forecast_files import write_forecasts
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey, utc_text
from tasks.evaluate import forecaster
from tasks.policies import IDEMPOTENT
from tasks.refs import BuiltDataset, FailureRef, ForecastRef, ForecastsRef, PairRef
from tasks.reports.forecast_charts import draw_forecast

__all__ = ["IncompleteForecast", "complete", "export_forecasts", "forecast"]

QUANTILES = tuple(round(0.05 * step, 2) for step in range(1, 20))
_CLOSE = 3
_SHOWN_CONTEXT = 96
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Past:
    """The newest closed candles of one series."""

    key: SeriesKey
    features: NDArray[np.float32]  # (C, 6)
    open_time: NDArray[np.int64]  # (C,) ms
    future: NDArray[np.int64]  # (H,) ms

    @property
    def origin_ms(self) -> int:
        """Open time of the last candle."""
        return int(self.open_time[-1])


class IncompleteForecast(StorageError):  # noqa: N818  # it says what happened
    """Some series could not be forecast; the forecasts of the others are stored."""

    def __init__(self, message: str, forecasts: ForecastsRef) -> None:
        super().__init__(message)
        self.forecasts = forecasts


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
) -> ForecastsRef:
    """Forecast all `keys` in one call of the sampler; a forecast that is already stored is not made again.

    A series that is stale or has a hole in its lookback is left out, with the reason.
    """
    store = ForecastStore(home.forecasts)
    pasts, failures = _pasts(home, keys, lookback, horizon)
    missing = [past for past in pasts if store.find(past.key, past.origin_ms, model.predictor_digest) is None]
    seconds = _make(home, store, missing, model, config, dataset=dataset, seed=seed) if missing else 0.0
    made = {past.key for past in missing}
    return ForecastsRef(
        forecasts=tuple(_reference(home, store, past, model, made=past.key in made) for past in pasts),
        failures=failures,
        seconds=seconds,
    )


def complete(forecasts: ForecastsRef) -> ForecastsRef:
    """The same; IncompleteForecast with every reason where a series was left out."""
    if not forecasts.failures:
        return forecasts
    count = len(forecasts.failures) + len(forecasts.forecasts)
    reasons = " ".join(f"{one.series}: {one.reason}" for one in forecasts.failures)
    rest = "none was made" if not forecasts.forecasts else "the others are stored"
    raise IncompleteForecast(
        f"{len(forecasts.failures)} of {count} series not forecast, {rest}: {reasons}", forecasts
    )


def export_forecasts(home: Home, forecasts: Sequence[ForecastRef], target: Path) -> int:
    """Write these stored forecasts to a .csv, .json or .parquet file; how many steps there are in all."""
    store, stored = ForecastStore(home.forecasts), []
    for one in forecasts:
        found = store.find(SeriesKey.parse(one.series, one.interval), one.origin_ms, one.model_digest)
        assert found is not None, "a reference names what is stored"
        stored.append(found)
    return write_forecasts(stored, target)


def _pasts(
    home: Home, keys: Sequence[SeriesKey], lookback: int, horizon: int
) -> tuple[list[_Past], tuple[FailureRef, ...]]:
    """What the sampler continues, and which series it cannot."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    pasts, failures = [], []
    for key in keys:
        try:
            pasts.append(_past(lake, ledger, key, lookback, horizon))
        except StorageError as error:
            logger.warning("%s is not forecast: %s", key, error)
            failures.append(FailureRef(series=key.name, reason=str(error)))
    return pasts, tuple(failures)


def _make(
    home: Home,
    store: ForecastStore,
    pasts: list[_Past],
    model: PairRef,
    config: SamplingConfig,
    *,
    dataset: BuiltDataset | None,
    seed: int,
) -> float:
    """Sample, store and draw; the seconds that sampling took."""
    predictor = forecaster(model, dataset)
    started = time.perf_counter()
    sampled = _sample(predictor, pasts, config, seed)
    seconds = time.perf_counter() - started
    logger.info(
        "Sampled %d series x %d paths x %d candles in %.2f s by the %s",
        *sampled.shape[:3],
        seconds,
        model.origin,
    )
    for past, paths in zip(pasts, sampled, strict=True):
        _draw(home, past, paths, model)
        _store(store, past, paths, model)  # last: what is stored is not made again
    return seconds


def _past(lake: Lake, ledger: Ledger, key: SeriesKey, lookback: int, horizon: int) -> _Past:
    interval = key.interval
    candles = _newest(lake, key, lookback)
    open_time = candles["open_time"].dt.epoch("ms").to_numpy()
    last = utc_text(int(open_time[-1]))
    if tail := ledger.tail(key):
        raise StorageError(
            f"Expected {key} to go on trading, found no candle after {last} though the exchange was asked up to "
            f"{utc_text(tail.end_ms)}; it is halted or delisted: wait, or take it out of the series."
        )
    broken = len(candles) < lookback or interval.count(int(open_time[0]), int(open_time[-1])) != lookback
    if broken:
        raise StorageError(
            f"Expected the newest {lookback} candles of {key} without a hole, found {len(candles)} from "
            f"{utc_text(int(open_time[0]))} to {last} with some missing; run `kronos ingest` to repair the hole, or "
            f"shorten dataset.lookback."
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
    columns["probability_up"] = (close > last).mean(axis=0)
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
        "expected_volatility": _volatility(close, last),
        "samples": len(close),
        "model": model.origin,
        "tokenizer_digest": model.tokenizer_digest,
    }
    frame = pl.DataFrame([times, steps, *(pl.Series(name, values) for name, values in columns.items())])
    store.save(past.key, past.origin_ms, model.predictor_digest, frame, summary)


def _volatility(close: NDArray[np.float64], last: float) -> float:
    """Mean over the paths (S, H) of sqrt(sum of squared log-returns), over the horizon."""
    steps = np.diff(np.log(close), axis=1, prepend=np.log(last))
    return float(np.sqrt((steps**2).sum(axis=1)).mean())


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
    return home.forecasts / "figures" / f"{past.key.slug}-{past.origin_ms}-{model.predictor_digest}.png"


def _reference(home: Home, store: ForecastStore, past: _Past, model: PairRef, *, made: bool) -> ForecastRef:
    found = store.find(past.key, past.origin_ms, model.predictor_digest)
    assert found is not None, "stored above"
    summary = found.summary
    return ForecastRef(
        series=past.key.name,
        interval=str(past.key.interval),
        model_digest=model.predictor_digest,
        path=str(found.path),
        figure=str(_figure(home, past, model)),
        origin_ms=past.origin_ms,
        last_close=summary["last_close"],
        horizon_end_ms=summary["horizon_end_ms"],
        close_mean=summary["close_mean"],
        close_low=summary["close_low"],
        close_high=summary["close_high"],
        probability_up=summary["probability_up"],
        expected_log_return=summary["expected_log_return"],
        expected_volatility=summary["expected_volatility"],
        model=summary["model"],
        made=made,
    )
