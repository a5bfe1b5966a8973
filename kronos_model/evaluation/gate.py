"""Promote, keep or reject: a pure function from scores to a decision with its reasons in words.

Shapes: N origins of all series in order of time, D bootstrap draws.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.config import GatePolicy
from kronos_model.evaluation.diagnostics import loss_tests
from kronos_model.evaluation.intervals import Resampler, block_length, widened
from kronos_model.evaluation.scores import Scores

__all__ = ["Comparison", "Decision", "GatePolicy", "Verdict", "compare", "judge", "widening"]

Verdict = Literal["promote", "keep", "reject"]
_BPS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A verdict and why, in words with numbers and units."""

    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Challenger minus opponent, mean CRPS in log-return units; below 0 the challenger is better."""

    opponent: str
    difference: float
    low: float
    high: float
    relative: float | None  # difference / opponent's CRPS
    blocks: int
    violations: float  # challenger's rate minus the opponent's


def judge(
    scores: Scores,
    policy: GatePolicy,
    *,
    challenger: str = "challenger",
    base: str = "base",
    champion: str | None = None,
) -> Decision:
    """Decide about the challenger against the base model and, where there is one, the champion.

    "promote": its CRPS is below that of every opponent, with the whole interval below 0, no series is
    significantly worse, and its 90 % band covers what it should.
    "reject": an interval lies above 0, a series is significantly worse, the coverage is significantly off, or it
    breaks clearly more bars.
    "keep": anything else, too little data included; nothing changes. Token loss is not asked for.
    """
    opponents = list(dict.fromkeys(name for name in (base, champion) if name is not None))
    if challenger in opponents:
        raise ValueError(f"expected a challenger that differs from {opponents}, found {challenger!r}")
    comparisons = [compare(scores, policy, challenger=challenger, opponent=name) for name in opponents]
    short = _too_little(scores, policy, comparisons[0])
    if short is not None:
        return Decision(verdict="keep", reasons=(short,))
    better = [_in_words(comparison, policy, challenger=challenger) for comparison in comparisons]
    coverage = _coverage(scores, policy, challenger)
    harm = [
        *(sentence for one in opponents for sentence in _worse_series(scores, policy, challenger, one)),
        *(
            f"{challenger} breaks {100 * one.violations:.1f} percentage points more bars than {one.opponent} "
            f"(at most {100 * policy.violation_margin:.1f} are allowed)"
            for one in comparisons
            if one.violations > policy.violation_margin
        ),
    ]
    reasons = (*better, *harm, coverage.sentence)
    if harm or coverage.surely_off or any(one.low > 0 for one in comparisons):
        return Decision(verdict="reject", reasons=reasons)
    if coverage.inside and all(one.high < 0 for one in comparisons):
        return Decision(verdict="promote", reasons=reasons)
    return Decision(verdict="keep", reasons=reasons)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Coverage:
    inside: bool
    surely_off: bool  # the whole interval lies outside of what is asked for
    sentence: str


def _coverage(scores: Scores, policy: GatePolicy, challenger: str) -> _Coverage:
    """The share of bars inside the 90 % band against the policy."""
    inside = scores.covered[scores.level(0.9), scores.index(challenger)].mean(axis=1)  # (N,)
    resampler = Resampler.of(
        scores.origin_ms,
        scores.horizon_ms,
        confidence=policy.confidence,
        draws=policy.draws,
        seed=policy.seed,
    )
    low, high = (float(end) for end in resampler.mean(inside, policy.confidence))
    share = float(inside.mean())
    asked = f"{100 * policy.coverage_low:g} to {100 * policy.coverage_high:g} % are asked for"
    return _Coverage(
        inside=policy.coverage_low <= share <= policy.coverage_high,
        surely_off=high < policy.coverage_low or low > policy.coverage_high,
        sentence=f"the 90 % band of {challenger} covers {100 * share:.1f} % of the bars ({asked})",
    )


def _worse_series(scores: Scores, policy: GatePolicy, challenger: str, opponent: str) -> list[str]:
    """One sentence per series on which the challenger is significantly worse, corrected for their number."""
    if len(scores.series) == 1:
        return []
    tests = loss_tests(scores, challenger, opponent, by_step=False)
    return [
        f"{challenger} is worse than {opponent} on {test.series}: CRPS difference "
        f"{_BPS * test.difference:+.3f} bps, p = {test.p_holm:.2g} (Diebold and Mariano, Holm)"
        for test in tests
        if test.difference > 0 and test.p_holm < 1 - policy.confidence
    ]


def compare(scores: Scores, policy: GatePolicy, *, challenger: str, opponent: str) -> Comparison:
    """Mean CRPS difference and its interval by a circular block bootstrap over time.

    Origins of all series stand in one line ordered by time, and a block is as many of them as start within
    one horizon: so overlapping forecasts, and series that move together, are drawn together.
    """
    ours, theirs = scores.index(challenger), scores.index(opponent)
    order = np.lexsort((scores.series_index, scores.origin_ms))
    differences = (scores.crps[ours] - scores.crps[theirs]).mean(axis=1)[order]  # (N,)
    block = block_length(scores.origin_ms[order], scores.horizon_ms)
    low, high = _interval(differences, block, policy)
    level = float(scores.crps[theirs].mean())
    return Comparison(
        opponent=opponent,
        difference=float(differences.mean()),
        low=low,
        high=high,
        relative=float(differences.mean()) / level if level > 0 else None,
        blocks=len(differences) // block,
        violations=float((scores.violation_rate[ours] - scores.violation_rate[theirs]).mean()),
    )


def _interval(values: NDArray[np.float64], block: int, policy: GatePolicy) -> tuple[float, float]:
    """Percentile interval of the mean of N values when whole blocks are redrawn (Politis and Romano 1992)."""
    count = len(values)
    pieces = math.ceil(count / block)
    if pieces < 2:
        return -math.inf, math.inf
    wrapped = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values]))])
    sums = wrapped[block : block + count] - wrapped[:count]  # (N,) of each block, around the end
    starts = np.random.default_rng(policy.seed).integers(0, count, (policy.draws, pieces))
    means = sums[starts].sum(axis=1) / (pieces * block)  # (D,)
    centre = float(values.mean())
    tails = [(1 - policy.confidence) / 2, (1 + policy.confidence) / 2]
    low, high = centre + (np.quantile(means, tails) - centre) * widening(block, pieces, policy.confidence)
    return float(low), float(high)


def widening(block: int, pieces: int, confidence: float) -> float:
    """What the bootstrap's interval is multiplied by to hold its confidence; 1 for many blocks of one origin.

    Blocks of one horizon miss the dependence across their borders: for forecasts that overlap evenly the
    autocovariance falls as t = 1 - lag/block, and sums of a block show only sum(t^2) / sum(t) of the long-run
    variance. Measured for 40 to 1,000 origins that overlap 4 to 12 times, where 5 % false promotions are meant:
    9 to 12 % without this and what few pieces need, 4 to 6.5 % with it.
    """
    weights = 1 - np.abs(np.arange(1 - block, block)) / block
    shown = float((weights**2).sum() / weights.sum())
    return widened(pieces, shown, confidence)


def _too_little(scores: Scores, policy: GatePolicy, comparison: Comparison) -> str | None:
    """Why nothing can be decided yet, or None."""
    count = len(scores.origin_ms)
    if count < policy.min_origins:
        return f"only {count} origins were scored, {policy.min_origins} are needed; widen the test range"
    if comparison.blocks < policy.min_blocks:
        return (
            f"the {count} origins span only {comparison.blocks} forecasts that do not overlap, "
            f"{policy.min_blocks} are needed; widen the test range"
        )
    return None


def _in_words(comparison: Comparison, policy: GatePolicy, *, challenger: str) -> str:
    if comparison.high < 0:
        finding = f"{challenger} is better than {comparison.opponent}"
    elif comparison.low > 0:
        finding = f"{challenger} is worse than {comparison.opponent}"
    else:
        finding = f"{challenger} cannot be told from {comparison.opponent}"
    interval = f"{_BPS * comparison.low:+.3f} to {_BPS * comparison.high:+.3f} bps"
    relative = "" if comparison.relative is None else f", {100 * comparison.relative:+.2f} %"
    return (
        f"{finding}: CRPS difference {_BPS * comparison.difference:+.3f} bps{relative}, "
        f"{100 * policy.confidence:g} % interval {interval}"
    )
