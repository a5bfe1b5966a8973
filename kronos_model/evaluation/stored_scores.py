"""Scores of a stored forecast, of which its quantiles are left, once the truth has come.

Everything is measured on r(h) = ln(close(h) / last known close), a pure number; x 10,000 gives basis points.
Q levels, H steps.
"""

from dataclasses import dataclass

import numpy as np
import scoringrules
from numpy.typing import NDArray

from kronos_model.evaluation.intervals import Resampler

__all__ = ["SKILL_CONFIDENCE", "LiveScore", "score_quantiles", "skill_interval"]

Floats = NDArray[np.float64]

SKILL_CONFIDENCE = 0.9
"""Of the live skill's interval: the gate's."""
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveScore:
    """How one forecast did at each of its H steps; NaN where no candle came."""

    crps: Floats
    """Continuous ranked probability score over the stored quantiles, in units of r, lower is better."""
    last_value: Floats
    """The CRPS of saying that the price stays: |r|."""
    covered_50: Floats
    """1 where the close came to lie between the quantiles 0.25 and 0.75, else 0."""
    covered_90: Floats
    """1 between the quantiles 0.05 and 0.95."""


def score_quantiles(levels: Floats, quantiles: Floats, realised: Floats, last_close: float) -> LiveScore:
    """Closes at these levels (Q,) as forecast (Q, H), against the closes (H,) that came.

    The CRPS is twice the mean pinball loss over the levels: for even levels the integral over all of them, without
    the outermost tails. A point forecast scores its absolute error, so the last value is comparable.
    """
    forecast = np.log(quantiles / last_close)
    came = np.log(realised / last_close)
    crps = scoringrules.crps_quantile(came, forecast, levels, m_axis=0, backend="numpy")
    return LiveScore(
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
