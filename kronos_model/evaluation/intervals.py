"""Uncertainty of what a walk-forward found: bootstrap over time, Diebold and Mariano's test, Holm's correction.

Forecasts that overlap share their future, and series at one time share their market. So whatever is resampled
or tested here is one value per origin time, all series of that time together.
Shapes: N origins of all series, T origin times, D bootstrap draws, H steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from kronos_model.references import stretches

__all__ = [
    "Resampler",
    "TestResult",
    "against",
    "block_length",
    "diebold_mariano",
    "holm",
    "per_time",
    "widened",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TestResult:
    """Diebold and Mariano's test of a mean loss difference; negative statistics favour the first model."""

    statistic: float
    p_value: float  # two-sided


def block_length(origin_ms: NDArray[np.int64], horizon_ms: int) -> int:
    """The most origins that start within one horizon; `origin_ms` (N,) is sorted."""
    ends = np.searchsorted(origin_ms, origin_ms + horizon_ms, side="left")
    return int((ends - np.arange(len(origin_ms))).max())


def per_time(origin_ms: NDArray[np.int64], values: Floats) -> tuple[Floats, Floats]:
    """Sums (T, ...) and counts (T,) of values (N, ...) over the origins of each time, in order of time."""
    times, index = np.unique(origin_ms, return_inverse=True)
    sums = np.zeros((len(times), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index, minlength=len(times)).astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Resampler:
    """Stationary block bootstrap (Politis and Romano 1994) over origin times, drawn once and used by all metrics.

    Stretches have a geometric length whose mean is twice the horizon (or one origin, where none overlap). That
    still misses part of the dependence and few stretches understate their variance, for which the intervals are
    widened as the gate's are.
    """

    origin_ms: NDArray[np.int64]  # (N,)
    weights: Floats  # (D, T): how often each time was drawn
    factor: float

    @classmethod
    def of(
        cls,
        origin_ms: NDArray[np.int64],
        horizon_ms: int,
        *,
        confidence: float,
        draws: int,
        seed: int = 0,
    ) -> Self:
        """For forecasts from these origins (N,), in any order, that all look so far ahead."""
        times = np.unique(origin_ms)
        block = block_length(times, horizon_ms)
        mean_block = 2 * block if block > 1 else 1
        return cls(
            origin_ms=origin_ms,
            weights=_weights(len(times), mean_block, draws=draws, seed=seed),
            factor=_widening(block, mean_block, len(times) / mean_block, confidence),
        )

    def mean(self, values: Floats, confidence: float) -> tuple[Floats, Floats]:
        """Ends of the interval of the mean over origins of values (N, ...)."""
        sums, counts = per_time(self.origin_ms, values)
        return self._ends(
            self._drawn(sums) / self._drawn(counts).reshape(-1, *([1] * (values.ndim - 1))),
            values.mean(axis=0),
            confidence,
        )

    def skill(self, loss: Floats, reference: Floats, confidence: float) -> tuple[Floats, Floats]:
        """Ends of the interval of 1 - mean loss / mean reference, of losses (N, ...) at the same origins."""
        ours, theirs = (self._drawn(per_time(self.origin_ms, one)[0]) for one in (loss, reference))
        return self._ends(1 - ours / theirs, 1 - loss.mean(axis=0) / reference.mean(axis=0), confidence)

    def _drawn(self, sums: Floats) -> Floats:
        return np.tensordot(self.weights, sums, axes=1)

    def _ends(self, drawn: Floats, centre: Floats, confidence: float) -> tuple[Floats, Floats]:
        if not math.isfinite(self.factor):
            return np.full_like(drawn[0], -np.inf), np.full_like(drawn[0], np.inf)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = centre + (np.quantile(drawn, tails, axis=0) - centre) * self.factor
        return low, high


def _weights(count: int, mean_block: int, *, draws: int, seed: int) -> Floats:
    """(D, T): how often a stationary bootstrap of T times draws each."""
    rng = np.random.default_rng(seed)
    start, offset = stretches(rng.random((draws, count)) < 1 / mean_block, rng.random((draws, count)))
    rows = (np.floor(start * count).astype(np.int64) + offset) % count
    flat = rows + count * np.arange(draws)[:, None]
    return np.bincount(flat.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)


def _widening(block: int, mean_block: int, pieces: float, confidence: float) -> float:
    """As in the gate, from the share of the long-run variance that stretches show."""
    if pieces <= 2:
        return math.inf
    lags = np.abs(np.arange(1 - block, block))
    weights = 1 - lags / block
    shown = float((weights * (1 - 1 / mean_block) ** lags).sum() / weights.sum())
    return widened(pieces, shown, confidence)


def widened(pieces: float, shown: float, confidence: float) -> float:
    """What an interval is multiplied by where so many pieces show this share of the long-run variance.

    Few pieces understate their own variance by 1 - 1/pieces, and need Student's quantile instead of the normal one
    (first term of its expansion).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return math.sqrt(pieces / (pieces - 1) / shown) * (1 + (z * z + 1) / (4 * (pieces - 1)))


def against(low: float | None, high: float | None) -> str:
    """What a skill with this interval says of a model before the name of its reference; None: no interval."""
    if low is None or high is None or low <= 0 <= high:
        return "cannot be told from"
    return "is better than" if low > 0 else "is worse than"


def diebold_mariano(differences: Floats, overlaps: int) -> TestResult:
    """Is the mean of the loss differences (T,) zero? Forecasts overlap with `overlaps` - 1 following ones.

    Diebold and Mariano 1995: the variance of the mean sums the autocovariances up to that lag (Bartlett's
    weights, as in Newey and West 1987, where that sum is not positive). The statistic is corrected for small
    samples and compared with Student's t of T - 1 degrees (Harvey, Leybourne and Newbold 1997).
    """
    count, lags = len(differences), min(overlaps, len(differences) - 1)
    if count < 2:
        raise ValueError(f"the test needs at least 2 origin times, found {count}; score more origins")
    centred = differences - differences.mean()
    covariances = np.array([centred[lag:] @ centred[: count - lag] for lag in range(lags)]) / count
    if covariances[0] <= 1e-30 * (1 + float(np.abs(differences).max()) ** 2):
        mean = float(differences.mean())  # the same at every origin: there is nothing random about it
        sure = TestResult(statistic=math.copysign(math.inf, mean), p_value=0.0)
        return sure if mean != 0 else TestResult(statistic=0.0, p_value=1.0)
    variance = float(covariances[0] + 2 * covariances[1:].sum())
    if variance <= 0:
        variance = float(covariances[0] + 2 * ((1 - np.arange(1, lags) / lags) * covariances[1:]).sum())
    harvey = (count + 1 - 2 * lags + lags * (lags - 1) / count) / count
    statistic = float(differences.mean()) / math.sqrt(variance / count) * math.sqrt(max(harvey, 0.0))
    return TestResult(statistic=statistic, p_value=float(2 * student.sf(abs(statistic), count - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected so that the chance of any false finding in the family stays what each promises (Holm 1979)."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    raised = np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0)
    corrected[order] = np.maximum.accumulate(raised)
    return [float(value) for value in corrected]
