"""Scores of sample paths against what happened: pure functions on arrays.

Everything is measured on r(h) = ln(close(h) / last known close), a pure number; x 10,000 gives basis points.
Shapes: B origins, S sample paths, H steps, Q quantile levels, F price fields. `samples` is (B, S, H),
`realised` is (B, H).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import scoringrules
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

__all__ = [
    "correlation",
    "covered",
    "crps",
    "energy_score",
    "independent_count",
    "log_returns",
    "pinball",
    "pit",
    "pool_crps",
    "probability_up",
    "rank_correlation",
    "skill",
    "variance",
    "wilson_interval",
    "winkler",
]

Floats = NDArray[np.float64]


def log_returns(close: NDArray[np.floating], last_close: NDArray[np.floating]) -> Floats:
    """ln(close / last_close) of close (B, ..., H) and last_close (B,), both in the quote currency."""
    scale = last_close.astype(np.float64).reshape(-1, *([1] * (close.ndim - 1)))
    return np.asarray(np.log(close.astype(np.float64) / scale), dtype=np.float64)


def crps(
    samples: Floats,
    realised: Floats,
    *,
    member: NDArray[np.int64] | None = None,
    sorted_samples: bool = False,
) -> Floats:
    """Continuous ranked probability score, (B, H), in units of r, lower is better.

    E|X - y| - E|X - X'| / 2, with the second mean over the S(S-1) pairs of different paths: the fair
    estimator (Ferro 2014), whose expectation does not depend on S. A point forecast scores its absolute error. Paths
    of a pool say which `member` (S,) each is from.
    """
    if samples.shape[1] < 2:
        raise ValueError(
            f"the CRPS needs at least 2 sample paths per origin, found {samples.shape[1]}; raise `samples`"
        )
    if member is not None:
        return pool_crps(samples, realised, member)
    # "pwm" (Zamo and Naveau 2018) is the fair estimator in O(S log S); "fair" gives the same value in O(S^2).
    return np.asarray(
        scoringrules.crps_ensemble(
            realised, samples, m_axis=1, estimator="pwm", sorted_ensemble=sorted_samples, backend="numpy"
        )
    )


def pool_crps(samples: Floats, realised: Floats, member: NDArray[np.int64]) -> Floats:
    """CRPS (B, H) of a pool whose paths (B, S, H) were dealt to members, told by a number (S,) each.

    Dealt paths differ more from each other than draws from the pool do, for they are never by chance from one member:
    the fair estimator would be too low by up to 0.5 % at 30 paths. Here pairs of one member and of two count as often
    as draws would make them. A member with one path is taken to be as wide as the pool.
    """
    count = samples.shape[1]
    whole = _pair_distances(samples)
    within = [_pair_distances(samples[:, member == one]) for one in np.unique(member)]
    numbers = np.bincount(member)[np.unique(member)]
    apart = 2 * (whole - sum(within)) / count**2
    for number, inner in zip(numbers, within, strict=True):
        pairs, sums = (number, inner) if number > 1 else (count, whole)
        apart = apart + (number / count) ** 2 * 2 * sums / (pairs * (pairs - 1))
    return np.asarray(np.abs(samples - realised[:, None]).mean(axis=1) - apart / 2)


def pinball(values: Floats, realised: Floats, levels: Sequence[float]) -> Floats:
    """Quantile loss (B, H), the mean over levels of max(a (y - q), (a - 1) (y - q)) for quantiles (Q, B, H).

    In units of r, lower is better; twice the mean over all levels is the CRPS (Koenker and Bassett 1978).
    """
    level = np.asarray(levels)[:, None, None]
    return np.asarray(scoringrules.quantile_score(realised, values, level, backend="numpy").mean(axis=0))


def _pair_distances(samples: Floats) -> Floats:
    """Sum (B, H) of the distances of all pairs of paths."""
    count = samples.shape[1]
    return np.asarray(np.einsum("s,bsh->bh", 2.0 * np.arange(count) - count + 1, np.sort(samples, axis=1)))


def winkler(low: Floats, high: Floats, realised: Floats, share: float) -> Floats:
    """Interval score (B, H): width + 2 / (1 - share) x how far outside; of r, lower is better (Winkler 1972)."""
    score = scoringrules.interval_score(realised, low, high, 1 - share, backend="numpy")
    return np.asarray(score).reshape(realised.shape)  # it drops the axis of a single origin


def covered(low: Floats, high: Floats, realised: Floats) -> NDArray[np.bool_]:
    """low <= realised <= high, (B, H). Its mean should equal the interval's share."""
    return np.asarray((low <= realised) & (realised <= high))


def pit(samples: Floats, realised: Floats, uniforms: Floats) -> Floats:
    """Probability integral transform (B, H): uniform on [0, 1] where the paths are calibrated.

    (paths below y + u (1 + paths equal to y)) / (S + 1) with u (B, H) uniform: the rank of y among S + 1
    exchangeable values, its step of 1 / (S + 1) filled at random (Czado, Gneiting and Held 2009).
    """
    truth = realised[:, None, :]
    below, equal = (samples < truth).sum(axis=1), (samples == truth).sum(axis=1)
    return np.asarray((below + uniforms * (1 + equal)) / (samples.shape[1] + 1))


def probability_up(samples: Floats) -> Floats:
    """P(r > 0) as the share of paths above 0, (B, H); paths that do not move count half."""
    return np.asarray((samples > 0).mean(axis=1) + (samples == 0).mean(axis=1) / 2)


def energy_score(samples: Floats, realised: Floats) -> Floats:
    """Energy score of whole paths, (B,): E||X - y|| - E||X - X'|| / 2 in H dimensions, fair like the CRPS.

    In units of r, lower is better. Unlike the CRPS it sees whether the steps of a path belong together
    (Gneiting and Raftery 2007, section 4.3).
    """
    miss = np.sqrt(((samples - realised[:, None]) ** 2).sum(axis=-1)).mean(axis=1)
    return np.asarray(miss - np.array([pdist(paths).mean() for paths in samples]) / 2)


def variance(path: Floats) -> Floats:
    """Realised variance (...) of r (..., H) over the horizon: the sum of squared one-bar log returns."""
    return np.asarray((np.diff(path, axis=-1, prepend=0.0) ** 2).sum(axis=-1))


def correlation(left: Floats, right: Floats) -> Floats:
    """Pearson's correlation along the last axis; NaN where one side does not vary."""
    a, b = left - left.mean(axis=-1, keepdims=True), right - right.mean(axis=-1, keepdims=True)
    varies = (np.ptp(left, axis=-1) > 0) & (np.ptp(right, axis=-1) > 0)
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    varies &= scale > 0
    return np.where(varies, (a * b).sum(axis=-1) / np.where(varies, scale, 1.0), np.nan)


def rank_correlation(left: Floats, right: Floats) -> Floats:
    """Spearman's correlation along the last axis, ties by their mean rank; NaN where one side does not vary."""
    return correlation(rankdata(left, axis=-1), rankdata(right, axis=-1))


def skill(score: float, reference: float) -> float | None:
    """1 - score / reference: 1 perfect, 0 as good as the reference, negative worse; None if that is 0."""
    return None if reference == 0 else 1 - score / reference


def wilson_interval(share: float, count: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) for a proportion `share` seen in `count` independent trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). `count` may be fractional: an effective number.
    """
    if not count > 0:
        raise ValueError(
            f"an interval for a proportion needs a positive count, found {count}; score some origins"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z * z / (2 * count)
    spread = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (centre - z * spread) / scale), min(1.0, (centre + z * spread) / scale)


def independent_count(origin_ms: NDArray[np.int64], horizon_ms: int) -> int:
    """How many of one series' origins can be kept so that no two horizons overlap (greedy, exact)."""
    count, free_from = 0, None
    for origin in np.sort(origin_ms).tolist():
        if free_from is None or origin >= free_from:
            count, free_from = count + 1, origin + horizon_ms
    return count
