"""Planted scores: models whose CRPS at every origin is known, without a model behind them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.scores import FAN_QUANTILES, Fans, Scores

__all__ = ["HOUR_MS", "planted_scores"]

HOUR_MS = 3_600_000
_START_MS = 1_735_689_600_000  # 2025-01-01


def planted_scores(
    crps: Mapping[str, NDArray[np.float64]],
    *,
    stride_hours: int = 24,
    horizon: int = 4,
    series: int = 1,
    violation_rate: Mapping[str, float] | None = None,
) -> Scores:
    """Scores with this CRPS per model and origin, (N,) each, the same at every step of hourly candles.

    With several series, origin n of the argument belongs to series n % series, and they share their times.
    """
    models = tuple(crps)
    count = len(crps[models[0]])
    rows = np.arange(count)
    order = np.lexsort((rows // series, rows % series))
    values = np.stack([crps[model] for model in models])[:, order]
    steps = np.repeat(values[:, :, None], horizon, axis=2)
    rates = np.array([(violation_rate or {}).get(model, 0.0) for model in models])
    names = tuple(f"um:COIN{index}USDT" for index in range(series))
    return Scores(
        models=models,
        series=names,
        interval="1h",
        interval_ms=HOUR_MS,
        horizon=horizon,
        dataset_digest="0" * 16,
        series_index=(rows % series)[order].astype(np.int32),
        origin_ms=_START_MS + (rows // series)[order].astype(np.int64) * stride_hours * HOUR_MS,
        last_close=np.full(count, 100.0),
        absolute_error=steps * 1.5,
        squared_error=steps**2,
        crps=steps,
        price_error=steps * 100,
        covered_50=steps > np.median(steps),
        covered_90=steps > np.quantile(steps, 0.1),
        width_50=steps * 2,
        width_90=steps * 4,
        direction_hit=np.where(values > np.median(values), 1.0, 0.0),
        violation_rate=np.repeat(rates[:, None], count, axis=1),
        fans=Fans(
            origin_ms=np.full(series, _START_MS),
            context=np.full((series, 8), 100.0),
            realised=np.full((series, horizon), 101.0),
            quantiles=np.full((series, len(models), len(FAN_QUANTILES), horizon), 100.0),
        ),
    )
