"""Scores of sample paths against what happened: pure functions on arrays.

Everything is measured on r(h) = ln(close(h) / last known close), a pure number; x 10,000 gives basis points.
Shapes: B origins, S sample paths, H steps. `samples` is (B, S, H), `realised` is (B, H).
"""

import math
from statistics import NormalDist

import numpy as np
import scoringrules
from numpy.typing import NDArray

__all__ = [
    "absolute_error",
    "central_interval",
    "covered",
    "crps",
    "direction_hit",
    "independent_count",
    "log_returns",
    "skill",
    "squared_error",
    "wilson_interval",
]

Floats = NDArray[np.float64]


def log_returns(close: NDArray[np.floating], last_close: NDArray[np.floating]) -> Floats:
    """ln(close / last_close) of close (B, ..., H) and last_close (B,), both in the quote currency."""
    scale = last_close.astype(np.float64).reshape(-1, *([1] * (close.ndim - 1)))
    return np.asarray(np.log(close.astype(np.float64) / scale), dtype=np.float64)


def absolute_error(samples: Floats, realised: Floats) -> Floats:
    """|median over S - realised|, (B, H), lower is better. The median is the point that minimises it."""
    return np.asarray(np.abs(np.median(samples, axis=1) - realised))


def squared_error(samples: Floats, realised: Floats) -> Floats:
    """(mean over S - realised)^2, (B, H), lower is better. The mean is the point that minimises it."""
    return np.asarray((samples.mean(axis=1) - realised) ** 2)


def crps(samples: Floats, realised: Floats) -> Floats:
    """Continuous ranked probability score, (B, H), in units of r, lower is better.

    E|X - y| - E|X - X'| / 2, with the second mean over the S(S-1) pairs of different paths: the fair
    estimator, whose expectation does not depend on S. A point forecast scores its absolute error.
    """
    if samples.shape[1] < 2:
        raise ValueError(
            f"the CRPS needs at least 2 sample paths per origin, found {samples.shape[1]}; raise `samples`"
        )
    # "pwm" is the fair estimator in O(S log S); "fair" gives the same value in O(S^2).
    return np.asarray(
        scoringrules.crps_ensemble(realised, samples, m_axis=1, estimator="pwm", backend="numpy")
    )


def central_interval(samples: Floats, share: float) -> tuple[Floats, Floats]:
    """Ends, each (B, H), of the central interval that holds `share` of the paths (linear quantiles)."""
    low, high = np.quantile(samples, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return low, high


def covered(low: Floats, high: Floats, realised: Floats) -> NDArray[np.bool_]:
    """low <= realised <= high, (B, H). Its mean should equal the interval's share."""
    return np.asarray((low <= realised) & (realised <= high))


def direction_hit(samples: Floats, realised: Floats) -> Floats:
    """Is the median's sign at the last step right? (B,): 1 yes, 0 no, NaN where either side does not move."""
    called, moved = np.sign(np.median(samples[:, :, -1], axis=1)), np.sign(realised[:, -1])
    return np.where((called == 0) | (moved == 0), np.nan, (called == moved).astype(np.float64))


def skill(score: float, reference: float) -> float | None:
    """1 - score / reference: 1 perfect, 0 as good as the reference, negative worse; None if that is 0."""
    return None if reference == 0 else 1 - score / reference


def wilson_interval(share: float, count: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion `share` seen in `count` independent trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). `count` may be fractional: an effective number.
    """
    if not count > 0:
        raise ValueError(
            f"an interval for a proportion needs a positive count, found {count}; score some origins"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, spread = (
        share + z * z / (2 * count),
        math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2),
    )
    scale = 1 + z * z / count
    return max(0.0, (centre - z * spread) / scale), min(1.0, (centre + z * spread) / scale)


def independent_count(origin_ms: NDArray[np.int64], horizon_ms: int) -> int:
    """How many of one series' origins can be kept so that no two horizons overlap (greedy, exact)."""
    count, free_from = 0, None
    for origin in np.sort(origin_ms).tolist():
        if free_from is None or origin >= free_from:
            count, free_from = count + 1, origin + horizon_ms
    return count
