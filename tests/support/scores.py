"""Planted scores: models whose CRPS at every origin is known, without a model behind them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Forecast
from kronos_model.evaluation.scores import FAN_QUANTILES, LEVELS, Fans, Scores
from kronos_model.evaluation.scoring import Truth, score_paths

__all__ = ["HOUR_MS", "planted_scores", "sampled_scores"]

HOUR_MS = 3_600_000
_START_MS = 1_735_689_600_000  # 2025-01-01


def planted_scores(
    crps: Mapping[str, NDArray[np.float64]],
    *,
    stride_hours: int = 24,
    horizon: int = 4,
    series: int = 1,
    violation_rate: Mapping[str, float] | None = None,
    coverage_90: Mapping[str, float] | None = None,
    weight: float | None = None,
    samples: int = 32,
) -> Scores:
    """Scores with this CRPS per model and origin, (N,) each, the same at every step of hourly candles.

    With several series, origin n of the argument belongs to series n % series, and they share their times.
    The median is off by 1.5 x CRPS on alternating sides. coverage_90 is the share of bars inside the 90 % band,
    spread evenly over the origins; 0.9 where a model is not named. A challenger stands beside references that are a
    little worse, where none are given; `weight` is its own in the blend.
    """
    if "challenger" in crps and "references" not in crps:
        crps = {**crps, "references": 1.05 * crps["challenger"]}
    models = tuple(crps)
    count = len(crps[models[0]])
    rows = np.arange(count)
    order = np.lexsort((rows // series, rows % series))
    values = np.stack([crps[model] for model in models])[:, order]
    steps = np.repeat(values[:, :, None], horizon, axis=2)
    rates = np.array([(violation_rate or {}).get(model, 0.0) for model in models])
    shares = np.array([(coverage_90 or {}).get(model, 0.9) for model in models])
    names = tuple(f"um:COIN{index}USDT" for index in range(series))
    cells = (
        (np.arange(count)[:, None] * horizon + np.arange(horizon)) * 0.618033988749895 % 1
    )  # spread evenly
    covered = np.stack([cells < share for share in shares])
    realised = np.repeat(np.where(rows % 2 == 0, 0.01, -0.01)[:, None], horizon, axis=1)
    return Scores(
        models=models,
        series=names,
        interval="1h",
        interval_ms=HOUR_MS,
        horizon=horizon,
        dataset_digest="0" * 16,
        notes=(),
        samples=samples,
        weights={} if weight is None else {"blend": {"network": weight, "ewma": 1 - weight}},
        stages=(),
        stage_crps=steps[:0],
        series_index=(rows % series)[order].astype(np.int32),
        origin_ms=_START_MS + (rows // series)[order].astype(np.int64) * stride_hours * HOUR_MS,
        last_close=np.full(count, 100.0),
        next_open=np.full(count, 100.0),
        realised=realised,
        realised_variance=np.full(count, 1e-4),
        price_scale=np.full(series, 0.5),
        return_scale=np.full(series, 0.005),
        median=realised + steps * 1.5 * np.where(rows % 3 == 0, -1, 1)[:, None],
        mean=realised + steps,
        mean_ratio=np.exp(realised + steps),
        crps=steps,
        pinball=steps / 2,
        pit=np.broadcast_to(cells, steps.shape).copy(),
        probability_up=np.full(steps.shape, 0.6),
        covered=np.stack([covered] * len(LEVELS)),
        width=np.stack([steps * 4] * len(LEVELS)),
        winkler=np.stack([steps * 5] * len(LEVELS)),
        energy=values * 2,
        variance=values**2,
        price_ic=np.full(values.shape, 0.1),
        price_rank_ic=np.full(values.shape, 0.1),
        violation_rate=np.repeat(rates[:, None], count, axis=1),
        fans=Fans(
            origin_ms=np.full(series, _START_MS),
            context=np.full((series, 8), 100.0),
            realised=np.full((series, horizon), 101.0),
            quantiles=np.full((series, len(models), len(FAN_QUANTILES), horizon), 100.0),
        ),
    )


def sampled_scores(
    paths: Mapping[str, NDArray[np.float64]],
    realised: NDArray[np.float64],
    *,
    series: int = 1,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    members: Mapping[str, NDArray[np.int64]] | None = None,
) -> Scores:
    """Scores of log returns (N, S, H) by model against what happened (N, H), origins a day apart, as they are scored.

    Origin n belongs to series n % series; `members` of pools say whose each of their paths is.
    CRPS and coverage are those of the paths; the rest is planted.
    """
    count, horizon = realised.shape
    order = np.lexsort((np.arange(count) // series, np.arange(count) % series))
    skeleton = planted_scores(
        {name: np.zeros(count) for name in paths}, horizon=horizon, series=series, stride_hours=24
    )
    close = np.exp(realised[order])[..., None].repeat(4, axis=-1)
    names = [skeleton.series[index] for index in skeleton.series_index]
    truth = Truth.of(np.ones(count), close, series=names, origin_ms=skeleton.origin_ms)
    scored = []
    for name, one in paths.items():
        prices, member = np.exp(one[order])[..., None].repeat(6, axis=-1), (members or {}).get(name)
        made = Forecast(paths=prices, violation_rate=np.zeros(count), member=member)
        scored.append(score_paths(made, truth)[0])
    return replace(
        skeleton,
        realised=truth.realised,
        crps=np.stack([one["crps"] for one in scored]),
        covered=np.stack([one["covered"] for one in scored], axis=1),
        samples=next(iter(paths.values())).shape[1],
        weights=weights or {},
    )
