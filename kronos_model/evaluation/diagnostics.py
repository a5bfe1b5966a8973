"""What pictures of an evaluation are drawn from: skill and coverage by step, PIT, reliability, tests.

Shapes: M models, N origins of all series, H steps, G series.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest

from kronos_model.evaluation.intervals import Resampler, block_length, diebold_mariano, holm, per_time
from kronos_model.evaluation.scores import Scores

__all__ = [
    "LossTest",
    "Reliability",
    "SkillByStep",
    "coverage_by_step",
    "distance_from_uniform",
    "loss_tests",
    "pit_histogram",
    "reliability",
    "skill_by_step",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SkillByStep:
    """CRPS skill of a model against a reference with its interval, (H,) each."""

    skill: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reliability:
    """How often the close rose where the model said it would with about this probability, (bins,) each."""

    stated: Floats  # mean probability in the bin; NaN in an empty one
    observed: Floats
    count: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTest:
    """Diebold and Mariano's test of CRPS for one series and step (0-based; None: mean of all steps)."""

    series: str
    step: int | None
    difference: float  # mean CRPS of the model minus that of the opponent, log-return units
    statistic: float
    p_value: float
    p_holm: float = math.nan  # corrected over all series and steps of the table


def skill_by_step(
    scores: Scores, model: str, *, reference: str = "last_value", confidence: float = 0.95, draws: int = 1000
) -> SkillByStep:
    """1 - mean CRPS / mean CRPS of the reference per step, by a stationary block bootstrap over time."""
    ours, theirs = scores.crps[scores.index(model)], scores.crps[scores.index(reference)]
    resampler = Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=confidence, draws=draws)
    low, high = resampler.skill(ours, theirs, confidence)
    return SkillByStep(skill=1 - ours.mean(axis=0) / theirs.mean(axis=0), low=low, high=high)


def coverage_by_step(scores: Scores, model: str, share: float) -> Floats:
    """(H,) share of origins inside the central interval; best at `share`."""
    return np.asarray(scores.covered[scores.level(share), scores.index(model)].mean(axis=0))


def pit_histogram(scores: Scores, model: str, *, bins: int = 20) -> Floats:
    """(bins,) share of all bars in each bin of the PIT, times the number of bins: 1 everywhere is calibrated.

    A hump says that the fan is too wide, a U that it is too narrow, a slope that it is biased.
    """
    counts, _ = np.histogram(scores.pit[scores.index(model)], bins=bins, range=(0, 1))
    return np.asarray(counts / counts.sum() * bins)


def distance_from_uniform(pit: Floats) -> float:
    """Kolmogorov and Smirnov's distance of PIT values from the uniform distribution, 0 to 1.

    A distance, not a test: bars of one forecast depend on each other.
    """
    return float(kstest(pit.ravel(), "uniform", method="asymp").statistic)


def reliability(scores: Scores, model: str, *, step: int = -1, bins: int = 10) -> Reliability:
    """Stated and observed probability that the close is higher than the last known one at a step."""
    stated = scores.probability_up[scores.index(model), :, step]
    rose = (scores.realised[:, step] > 0).astype(np.float64)
    place = np.minimum((stated * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            stated=np.bincount(place, stated, bins) / count,
            observed=np.bincount(place, rose, bins) / count,
            count=count,
        )


def loss_tests(scores: Scores, model: str, opponent: str, *, by_step: bool = True) -> list[LossTest]:
    """Tests for every series, over all steps and (by_step) at each, corrected together after Holm."""
    differences = scores.crps[scores.index(model)] - scores.crps[scores.index(opponent)]  # (N, H)
    found = []
    for index, name in enumerate(scores.series):
        own = scores.series_index == index
        sums, _ = per_time(scores.origin_ms[own], differences[own])
        times = np.unique(scores.origin_ms[own])
        if len(times) < 2:
            continue
        for step in (None, *(range(scores.horizon) if by_step else ())):
            values = sums.mean(axis=1) if step is None else sums[:, step]
            reach = scores.horizon if step is None else step + 1
            test = diebold_mariano(values, block_length(times, reach * scores.interval_ms))
            found.append(
                LossTest(
                    series=name,
                    step=step,
                    difference=float(values.mean()),
                    statistic=test.statistic,
                    p_value=test.p_value,
                )
            )
    corrected = holm([test.p_value for test in found])
    return [replace(test, p_holm=p) for test, p in zip(found, corrected, strict=True)]
