"""Quantiles of paths, one at a time: what every place that shows some is held to."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["path_quantiles"]


def path_quantiles(paths: np.ndarray, levels: float | Sequence[float], axis: int = 0) -> np.ndarray:
    """Of S paths along `axis`, the r-th at r / (S + 1); between two linear in 1 / (1 - level) - 1 / level.

    Several levels come first, as in numpy.quantile.
    """
    ordered = np.moveaxis(np.sort(np.asarray(paths, np.float64), axis=axis), axis, 0)
    found = [_one(ordered, level) for level in np.atleast_1d(levels)]
    return np.stack(found) if np.ndim(levels) else found[0]


def _one(ordered: np.ndarray, level: float) -> np.ndarray:
    count = len(ordered)
    rank = level * (count + 1)
    if rank <= 1:
        return ordered[0]
    if rank >= count:
        return ordered[-1]
    low, high = (
        1 / (1 - r / (count + 1)) - (count + 1) / r for r in (math.floor(rank), math.floor(rank) + 1)
    )
    share = (1 / (1 - level) - 1 / level - low) / (high - low)
    return (1 - share) * ordered[math.floor(rank) - 1] + share * ordered[math.floor(rank)]
