"""Scores of a stored forecast once the truth has come: from its paths as the leaderboard scores, or from quantiles.

Everything is measured on r(h) = ln(close(h) / last known close), a pure number; x 10,000 gives basis points.
Q levels, S paths, H steps.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scoringrules
from numpy.typing import NDArray

from kronos_model.evaluation import metrics
from kronos_model.evaluation.intervals import Resampler
from kronos_model.spread import order_quantiles

__all__ = [
    "SKILL_CONFIDENCE",
    "LiveScore",
    "score_closes",
    "score_quantiles",
    "score_stored",
    "skill_interval",
]

Floats = NDArray[np.float64]
Closes = NDArray[np.float32]

SKILL_CONFIDENCE = 0.9
"""Of the live skill's interval: the gate's."""
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveScore:
    """How one forecast did at each of its H steps; NaN where no candle came."""

    estimator: Literal["paths", "quantiles"]
    """What the CRPS was estimated from; the two do not compare: that of quantiles is 5 to 8 % higher."""
    crps: Floats
    """Continuous ranked probability score, in units of r, lower is better."""
    last_value: Floats
    """The CRPS of saying that the price stays: |r|."""
    covered_50: Floats
    """1 where the close came to lie between the quantiles 0.25 and 0.75, else 0."""
    covered_90: Floats
    """1 between the quantiles 0.05 and 0.95."""


def score_stored(
    levels: Floats,
    quantiles: Floats,
    closes: Closes | None,
    realised: Floats,
    last_close: float,
    member: NDArray[np.int64] | None = None,
) -> LiveScore:
    """By the paths of the closes (S, H) where two or more are stored; by the quantiles (Q, H) where they are all."""
    if closes is None or len(closes) < 2:
        return score_quantiles(levels, quantiles, realised, last_close)
    return score_closes(closes, realised, last_close, member)


def score_closes(
    closes: Closes, realised: Floats, last_close: float, member: NDArray[np.int64] | None = None
) -> LiveScore:
    """Paths of closes (S, H) against the closes (H,) that came: the fair CRPS of the leaderboard and its intervals.

    What came is rounded to float32 as a dataset holds it, so that one forecast has one score, there and here.
    """
    samples = metrics.log_returns(closes[None], np.array([last_close]))
    came = metrics.log_returns(realised.astype(np.float32)[None], np.array([last_close]))
    ends = order_quantiles(np.sort(samples, axis=1), (0.05, 0.25, 0.75, 0.95))
    inside = [metrics.covered(ends[low], ends[high], came)[0] for low, high in ((1, 2), (0, 3))]
    covered_50, covered_90 = (np.where(np.isnan(came[0]), np.nan, one) for one in inside)
    return LiveScore(
        estimator="paths",
        crps=metrics.crps(samples, came, member=member)[0],
        last_value=np.abs(came[0]),
        covered_50=covered_50,
        covered_90=covered_90,
    )


def score_quantiles(levels: Floats, quantiles: Floats, realised: Floats, last_close: float) -> LiveScore:
    """Closes at these levels (Q,) as forecast (Q, H), against the closes (H,) that came.

    The CRPS is twice the mean pinball loss over the levels: for even levels the integral over all of them, without
    the outermost tails. A point forecast scores its absolute error, so the last value is comparable.
    """
    forecast = np.log(quantiles / last_close)
    came = np.log(realised / last_close)
    crps = scoringrules.crps_quantile(came, forecast, levels, m_axis=0, backend="numpy")
    return LiveScore(
        estimator="quantiles",
        crps=np.asarray(crps, dtype=np.float64),
        last_value=np.abs(came),
        covered_50=_covered(levels, forecast, came, 0.25, 0.75),
        covered_90=_covered(levels, forecast, came, 0.05, 0.95),
    )


def skill_interval(
    origin_ms: NDArray[np.int64], crps: Floats, last_value: Floats, horizon_ms: int
) -> tuple[float, float] | None:
    """Ends of the interval of 1 - sum of CRPS / sum of the last value's, each (N,) summed over a forecast's steps.

    From a stationary block bootstrap over origin times, since hourly forecasts share most of their future; None
    where the times are too few for one.
    """
    resampler = Resampler.of(origin_ms, horizon_ms, confidence=SKILL_CONFIDENCE, draws=_DRAWS)
    low, high = (float(end) for end in resampler.skill(crps, last_value, SKILL_CONFIDENCE))
    return (low, high) if np.isfinite([low, high]).all() else None


def _covered(levels: Floats, forecast: Floats, came: Floats, low: float, high: float) -> Floats:
    lower, upper = (forecast[_row(levels, level)] for level in (low, high))
    inside = ((lower <= came) & (came <= upper)).astype(np.float64)
    return np.where(np.isnan(came), np.nan, inside)


def _row(levels: Floats, level: float) -> int:
    found = np.flatnonzero(np.isclose(levels, level))
    if len(found) != 1:
        raise ValueError(
            f"expected the quantile {level} once, found the levels {levels.tolist()}; store it too"
        )
    return int(found[0])
