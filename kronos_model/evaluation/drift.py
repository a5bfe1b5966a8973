"""Whether the market still looks like the one a model was trained on.

The population stability index compares shares per decile of the training values: sum((now - then) ln(now / then)).
By convention 0.1 is a change and 0.25 a large one, but markets change all the time, and where they change slowly any
stretch of them differs from the rest. So the yardstick is the same index for as long stretches of training itself, each
against the rest of it without its neighbours, for the candles of now do not stand next to training either. Only what is
large and unusual among many such stretches is called drift; with few there is no yardstick, and nothing is.

Where many series and quantities are measured some are unusual by chance: p values are corrected after Holm, as the
gate's are. A rank among a few dozen stretches knows no p value that would survive that, so they come from Student's t
of the logarithm of the index, which is skewed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from scipy.stats import t as student

from kronos_model.evaluation.intervals import holm

__all__ = ["DRIFT_CANDLES", "FEWEST_STRETCHES", "Drift", "corrected", "measure_drift"]

DRIFT_CANDLES = 720
"""Newest candles that are compared with training: a month of 1h."""

FEWEST_STRETCHES = 19
"""Of training that make a yardstick: one more like fewer is above all of them more often than one time in twenty."""

_BINS = 10
_LARGE = 0.25
_UNUSUAL = 0.95
_FEWEST = 100  # values: with fewer the index is noise
_LEAST = 1e-6  # index and deviation of its logarithm: where all stretches are alike

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Now against training, for one quantity of one series."""

    psi: float
    usual: float | None
    """What 95 % of the stretches of training, and one more like them, stay below; None where they are fewer than 19."""
    p_value: float | None
    """How likely so large an index is where nothing has changed, one-sided; None where `usual` is."""
    ks: float
    """Largest distance of the two distribution functions (Kolmogorov and Smirnov), 0 to 1."""
    spread: float
    """Interquartile range now over that in training."""
    shift: float
    """Median now less that in training, in units of the quantity."""

    @property
    def drifted(self) -> bool:
        """Large, and more than what training itself shows; never where it is not known what that is."""
        if self.usual is None or self.p_value is None:
            return False
        return self.psi >= _LARGE and self.psi > self.usual and self.p_value <= 1 - _UNUSUAL


def measure_drift(then: Floats, now: Floats) -> Drift | None:
    """Drift of `now` from the training values `then`, both in order of time; None where there is too little to say."""
    if min(len(then), len(now)) < _FEWEST:
        return None
    edges = np.unique(np.quantile(then, np.linspace(0, 1, _BINS + 1)[1:-1]))
    whole, count = _counts(edges, then), len(then) // len(now)
    parts = then[len(then) - count * len(now) :].reshape(count, len(now))
    low, middle, high = np.quantile(then, [0.25, 0.5, 0.75])
    low_now, middle_now, high_now = np.quantile(now, [0.25, 0.5, 0.75])
    psi, usual = (
        _index(whole, _counts(edges, now)),
        _of_stretches(whole, [_counts(edges, one) for one in parts]),
    )
    return Drift(
        psi=psi,
        usual=None if usual is None else usual[math.ceil(_UNUSUAL * (count + 1)) - 1],
        p_value=None if usual is None else _p_value(psi, usual),
        ks=float(ks_2samp(then, now, method="asymp").statistic),
        spread=float((high_now - low_now) / (high - low)) if high > low else float("nan"),
        shift=float(middle_now - middle),
    )


def corrected(drifts: Sequence[Drift]) -> list[Drift]:
    """The same drifts, their p values corrected after Holm for all that were measured beside each other."""
    known = [one.p_value for one in drifts if one.p_value is not None]
    raised = iter(holm(known))
    return [one if one.p_value is None else replace(one, p_value=next(raised)) for one in drifts]


def _of_stretches(whole: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> list[float] | None:
    """Ascending, the index of each of K stretches of training; none where they are few.

    One more like them stays below the one of rank ceil(0.95 (K + 1)) at 95 %.
    """
    if len(parts) < FEWEST_STRETCHES:
        return None
    around = (sum(parts[max(0, at - 1) : at + 2]) for at in range(len(parts)))
    return sorted(_index(whole - near, part) for near, part in zip(around, parts, strict=True))


def _p_value(index: float, usual: Sequence[float]) -> float:
    """Of one more draw from what the logarithms of K indices are drawn from, by Student's t of K - 1 degrees."""
    known = np.log(np.maximum(usual, _LEAST))
    deviation = max(float(known.std(ddof=1)), _LEAST) * math.sqrt(1 + 1 / len(known))
    return float(student.sf((math.log(max(index, _LEAST)) - known.mean()) / deviation, len(known) - 1))


def _counts(edges: Floats, values: Floats) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def _index(then: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """From counts per bin; half a value more in each keeps the logarithm finite."""
    expected = (then + 0.5) / (then + 0.5).sum()
    found = (now + 0.5) / (now + 0.5).sum()
    return float(((found - expected) * np.log(found / expected)).sum())
