"""Scores of one model's sample paths at some origins.

Shapes: B origins, S sample paths, H steps, L levels of central intervals, Q quantile levels, F=6 features,
P=4 prices open, high, low, close.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Forecast, row_generator
from kronos_model.evaluation import metrics
from kronos_model.evaluation.scores import LEVELS, QUANTILES
from kronos_model.features import CLOSE, PRICES
from kronos_model.spread import order_quantiles

__all__ = ["Truth", "score_paths"]

_PINBALL = [at for at, level in enumerate(QUANTILES) if 0.05 <= level <= 0.95]
_ENDS = [tuple(QUANTILES.index(round((1 + sign * share) / 2, 3)) for sign in (-1, 1)) for share in LEVELS]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """What was known at B origins and what then happened."""

    series: Sequence[str]
    origin_ms: NDArray[np.int64]  # (B,) open time of the last known candle
    last_close: NDArray[np.float64]  # (B,)
    bars: NDArray[np.float64]  # (B, H, P)
    realised: NDArray[np.float64]  # (B, H) log return since the last known close
    uniforms: NDArray[np.float64]  # (B, H) that fill the steps of the PIT, the same for every model

    @classmethod
    def of(
        cls,
        last_close: NDArray[np.float64],
        bars: NDArray[np.float64],
        *,
        series: Sequence[str],
        origin_ms: NDArray[np.int64],
    ) -> Self:
        """From prices; the uniforms depend on series and origin alone."""
        return cls(
            series=series,
            origin_ms=origin_ms,
            last_close=last_close,
            bars=bars,
            realised=metrics.log_returns(bars[:, :, CLOSE], last_close),
            uniforms=np.stack(
                [
                    row_generator(0, name, int(origin)).random(bars.shape[1])
                    for name, origin in zip(series, origin_ms, strict=True)
                ]
            ),
        )


def score_paths(made: Forecast, truth: Truth) -> tuple[Arrays, NDArray[np.float64]]:
    """Fields of Scores by name, (B, H), (L, B, H) or (B,) each, and the quantiles of r (Q, B, H)."""
    paths = made.paths
    samples = metrics.log_returns(paths[..., CLOSE], truth.last_close)  # (B, S, H)
    ordered = np.sort(samples, axis=1)  # once, used by many metrics
    if made.member is None:
        crps = metrics.crps(ordered, truth.realised, sorted_samples=True)
    else:  # a pool's paths are told apart by their place
        crps = metrics.pool_crps(samples, truth.realised, made.member)
    values = order_quantiles(ordered, QUANTILES)
    ends = [(values[low], values[high]) for low, high in _ENDS]
    forecast = np.moveaxis(paths[..., :PRICES].mean(axis=1, dtype=np.float64), -1, 1)  # (B, P, H)
    happened = np.moveaxis(truth.bars, -1, 1)
    scores: Arrays = {
        "median": values[QUANTILES.index(0.5)],
        "mean": samples.mean(axis=1),
        "mean_ratio": np.exp(samples).mean(axis=1),
        "crps": crps,
        "pinball": metrics.pinball(
            values[_PINBALL], truth.realised, [level for level in QUANTILES if 0.05 <= level <= 0.95]
        ),
        "pit": metrics.pit(samples, truth.realised, truth.uniforms),
        "probability_up": metrics.probability_up(samples),
        "covered": np.stack([metrics.covered(low, high, truth.realised) for low, high in ends]),
        "width": np.stack([high - low for low, high in ends]),
        "winkler": np.stack(
            [
                metrics.winkler(low, high, truth.realised, share)
                for (low, high), share in zip(ends, LEVELS, strict=True)
            ]
        ),
        "energy": metrics.energy_score(samples, truth.realised),
        "variance": metrics.variance(samples).mean(axis=1),
        "price_ic": metrics.correlation(forecast, happened).mean(axis=1),
        "price_rank_ic": metrics.rank_correlation(forecast, happened).mean(axis=1),
        "violation_rate": np.asarray(made.violation_rate, np.float64),
    }
    return scores, values
