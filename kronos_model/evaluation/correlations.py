"""Information coefficients: does a higher forecast come before a higher return?

Shapes: N origins of all series, G series, T origin times.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.intervals import block_length, diebold_mariano
from kronos_model.evaluation.metrics import correlation, rank_correlation
from kronos_model.evaluation.scores import Scores

__all__ = ["ACROSS", "OVER_TIME", "InformationCoefficient", "information_coefficient"]

Kind = Literal["per time across symbols", "per symbol"]
ACROSS: Kind = "per time across symbols"
OVER_TIME: Kind = "per symbol"
_FEWEST_SYMBOLS = 5  # below, a correlation across symbols says nothing
_FEWEST_TIMES = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class InformationCoefficient:
    """Means of the correlations; None where neither side varies or there is too little of it."""

    kind: Kind
    ic: float | None
    """Pearson's."""
    rank_ic: float | None
    """Spearman's."""
    icir: float | None = None
    """Mean over standard deviation of the correlations over time; only across symbols."""
    t_statistic: float | None = None
    """Of their mean, with autocorrelation up to the overlap of the horizons; only across symbols."""


def information_coefficient(
    scores: Scores, model: str, *, step: int = -1, chosen: NDArray[np.bool_] | None = None
) -> InformationCoefficient:
    """Correlation of expected and realised return at a step: across symbols from five on, else over time."""
    keep = np.ones(len(scores.origin_ms), np.bool_) if chosen is None else chosen
    expected, realised = scores.mean[scores.index(model), keep, step], scores.realised[keep, step]
    times, symbols = scores.origin_ms[keep], scores.series_index[keep]
    if len(np.unique(symbols)) < _FEWEST_SYMBOLS:
        return InformationCoefficient(
            kind=OVER_TIME,
            ic=_mean(_groupwise(correlation, expected, realised, symbols, _FEWEST_TIMES)),
            rank_ic=_mean(_groupwise(rank_correlation, expected, realised, symbols, _FEWEST_TIMES)),
        )
    series = _groupwise(correlation, expected, realised, times, _FEWEST_SYMBOLS)
    spread = float(series.std(ddof=1)) if len(series) > 1 else 0.0
    test = None
    if spread > 0:
        test = diebold_mariano(series, block_length(np.unique(times), scores.horizon_ms))
    return InformationCoefficient(
        kind=ACROSS,
        ic=_mean(series),
        rank_ic=_mean(_groupwise(rank_correlation, expected, realised, times, _FEWEST_SYMBOLS)),
        icir=float(series.mean()) / spread if spread > 0 else None,
        t_statistic=test.statistic if test and math.isfinite(test.statistic) else None,
    )


def _groupwise(
    measure: Callable[[Floats, Floats], Floats],
    expected: Floats,
    realised: Floats,
    groups: NDArray[np.integer],
    fewest: int,
) -> Floats:
    """One correlation per group of at least `fewest` members in which both sides vary, in order of the groups."""
    found = [
        float(measure(expected[groups == group], realised[groups == group]))
        for group, count in zip(*np.unique(groups, return_counts=True), strict=True)
        if count >= fewest
    ]
    return np.array([one for one in found if not math.isnan(one)])


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
