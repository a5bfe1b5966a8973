"""The gate on planted cases, and how often it promotes a model that is no better."""

import math

import numpy as np
import pytest

from kronos_model.evaluation.diagnostics import loss_tests
from kronos_model.evaluation.gate import GatePolicy, compare, judge, widening
from tests.support.scores import planted_scores

COUNT = 120
LEVEL = 0.02


def level(seed: int, *, shift: float = 0.0, count: int = COUNT) -> np.ndarray:
    """A model's CRPS per origin: the market's difficulty, the same for all, and a little of its own."""
    market = np.abs(np.random.default_rng(0).normal(LEVEL, LEVEL / 3, count))
    return market + np.random.default_rng(seed).normal(0, LEVEL / 50, count) + shift


def test_an_identical_challenger_is_kept_out_and_nothing_changes():
    same = level(1)
    decision = judge(planted_scores({"challenger": same, "base": same}), GatePolicy())
    assert decision.verdict == "keep"
    assert "cannot be told from base" in decision.reasons[0]
    assert "+0.000 bps" in decision.reasons[0]


def test_a_better_challenger_is_promoted_and_the_reason_has_numbers_and_units():
    scores = planted_scores({"challenger": level(1, shift=-0.001), "base": level(2)})
    decision = judge(scores, GatePolicy())
    difference = float((scores.crps[0] - scores.crps[1]).mean()) * 10_000
    assert decision.verdict == "promote"
    assert f"CRPS difference {difference:+.3f} bps" in decision.reasons[0]
    assert "90 % interval -" in decision.reasons[0]


def test_a_worse_challenger_is_rejected():
    decision = judge(planted_scores({"challenger": level(1, shift=0.001), "base": level(2)}), GatePolicy())
    assert decision.verdict == "reject"
    assert "worse than base" in decision.reasons[0]


def test_a_challenger_better_than_base_but_worse_than_the_champion_is_rejected():
    scores = planted_scores(
        {"challenger": level(1, shift=-0.001), "base": level(2), "champion": level(3, shift=-0.002)}
    )
    decision = judge(scores, GatePolicy(), champion="champion")
    assert decision.verdict == "reject"
    assert "better than base" in decision.reasons[0]
    assert "worse than champion" in decision.reasons[1]
    assert judge(scores, GatePolicy()).verdict == "promote"


def test_a_challenger_as_good_as_the_champion_does_not_replace_it():
    scores = planted_scores(
        {"challenger": level(1, shift=-0.001), "base": level(2), "champion": level(3, shift=-0.001)}
    )
    assert judge(scores, GatePolicy(), champion="champion").verdict == "keep"


def test_too_few_origins_keep_whatever_serves_however_good_the_challenger():
    scores = planted_scores({"challenger": level(1, count=29) / 2, "base": level(2, count=29)})
    decision = judge(scores, GatePolicy())
    assert decision.verdict == "keep"
    assert decision.reasons == (
        "only 29 origins were scored, 30 are needed; widen the test range",
        "the network adds nothing yet to the references that could be told",
    )


def test_many_origins_that_overlap_are_still_too_little_data():
    scores = planted_scores(
        {"challenger": level(1) / 2, "base": level(2)}, stride_hours=1, horizon=24
    )  # 120 hours hold five days
    decision = judge(scores, GatePolicy())
    assert decision.verdict == "keep"
    assert "only 5 forecasts that do not overlap" in decision.reasons[0]


def test_many_impossible_bars_reject_a_challenger_that_scores_better():
    scores = planted_scores(
        {"challenger": level(1, shift=-0.001), "base": level(2)},
        violation_rate={"challenger": 0.17, "base": 0.02},
    )
    decision = judge(scores, GatePolicy())
    assert decision.verdict == "reject"
    assert "15.0 percentage points more bars than base (at most 5.0 are allowed)" in decision.reasons[1]


def test_a_challenger_better_on_average_and_worse_on_one_symbol_is_rejected():
    base, ours = level(2, count=240), level(1, count=240, shift=-0.002)
    ours[2::3] += 0.003  # of three symbols the last one, where it is 0.001 worse
    decision = judge(planted_scores({"challenger": ours, "base": base}, series=3), GatePolicy())
    assert "better than base" in decision.reasons[0]
    assert "worse than base on um:COIN2USDT: CRPS difference +" in decision.reasons[1]
    assert "Holm" in decision.reasons[1]
    assert decision.verdict == "reject"
    ours[2::3] -= 0.002
    assert (
        judge(planted_scores({"challenger": ours, "base": base}, series=3), GatePolicy()).verdict == "promote"
    )


def test_a_symbol_that_is_worse_by_chance_does_not_reject():
    """Ten symbols, none truly worse: without Holm's correction about half of such nights would be rejected."""
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = np.full(600, LEVEL)
        ours = base + rng.normal(0, LEVEL / 20, 600)
        rejected += (
            judge(planted_scores({"challenger": ours, "base": base}, series=10), GatePolicy()).verdict
            == "reject"
        )
    assert rejected <= 8  # 5 % for each of: the mean, any symbol


def test_an_over_confident_challenger_is_rejected_however_good_its_crps():
    scores = planted_scores(
        {"challenger": level(1, shift=-0.001), "base": level(2)}, coverage_90={"challenger": 0.6}
    )
    decision = judge(scores, GatePolicy())
    assert decision.verdict == "reject"
    assert "the 90 % band of challenger covers 60" in decision.reasons[-1]
    assert "85 to 95 % are asked for" in decision.reasons[-1]


def test_a_coverage_that_may_be_off_by_chance_keeps_and_a_fan_too_wide_rejects():
    crps = {"challenger": level(1, shift=-0.001, count=36), "base": level(2, count=36)}
    assert judge(planted_scores(crps, coverage_90={"challenger": 0.84}), GatePolicy()).verdict == "keep"
    assert judge(planted_scores(crps, coverage_90={"challenger": 0.86}), GatePolicy()).verdict == "promote"
    assert judge(planted_scores(crps, coverage_90={"challenger": 1.0}), GatePolicy()).verdict == "reject"


def test_the_same_scores_always_get_the_same_decision():
    scores = planted_scores({"challenger": level(1, shift=-0.0001), "base": level(2)})
    assert judge(scores, GatePolicy()) == judge(scores, GatePolicy())


def test_a_model_that_was_not_scored_is_named():
    with pytest.raises(ValueError, match="expected one of the scored models a, base, found 'challenger'"):
        judge(planted_scores({"a": level(1), "base": level(2)}), GatePolicy())


def test_the_interval_equals_a_bootstrap_written_as_loops():
    scores = planted_scores({"challenger": level(1), "base": level(2)}, stride_hours=2, horizon=6, series=2)
    policy = GatePolicy(draws=100, seed=7)
    found = compare(scores, policy, challenger="challenger", opponent="base")
    line = sorted(range(COUNT), key=lambda n: (scores.origin_ms[n], scores.series_index[n]))
    values = [float(scores.crps[0, n, 0] - scores.crps[1, n, 0]) for n in line]
    block, pieces = 6, math.ceil(COUNT / 6)  # three origins of two series start within six hours
    means = []
    for starts in np.random.default_rng(7).integers(0, COUNT, (100, pieces)).tolist():
        drawn = [values[(start + step) % COUNT] for start in starts for step in range(block)]
        means.append(sum(drawn) / len(drawn))
    centre = sum(values) / COUNT
    wider = widening(block, pieces, 0.9)
    assert found.blocks == COUNT // block
    assert found.difference == pytest.approx(centre, abs=1e-12)
    assert found.low == pytest.approx(centre + (np.quantile(means, 0.05) - centre) * wider, abs=1e-12)
    assert found.high == pytest.approx(centre + (np.quantile(means, 0.95) - centre) * wider, abs=1e-12)


def test_overlapping_forecasts_do_not_promote_a_model_that_is_no_better():
    """A moving sum over a horizon of 12 of independent noise, one origin an hour, mean zero."""
    rng, promoted, naive, trials = np.random.default_rng(11), 0, 0, 200
    policy = GatePolicy(draws=300)
    for _ in range(trials):
        noise = np.convolve(rng.normal(0, 1e-4, 311), np.ones(12), mode="valid")
        base = np.full(300, LEVEL)
        scores = planted_scores({"challenger": base + noise, "base": base}, stride_hours=1, horizon=12)
        promoted += judge(scores, policy).verdict == "promote"
        naive += noise.mean() + 1.645 * noise.std() / math.sqrt(300) < 0
    assert naive / trials > 0.2  # what an interval for independent origins would have let through
    assert promoted / trials < 0.08  # 5 % are meant


def test_an_interval_of_independent_origins_is_widened_only_by_student():
    from scipy.stats import norm, t

    expected = t.ppf(0.95, 59) / norm.ppf(0.95) * math.sqrt(60 / 59)
    assert widening(1, 60, 0.9) == pytest.approx(expected, rel=1e-3)
    assert widening(1000, 10**6, 0.9) == pytest.approx(math.sqrt(1.5), rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 1.0},
        {"min_origins": 1},
        {"draws": 10},
        {"violation_margin": -0.1},
        {"coverage_low": 0.96},
        {"codebook_drop": 2.0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GatePolicy(**wrong)


def test_a_challenger_better_than_the_champion_on_average_and_worse_on_one_symbol_is_rejected():
    champion, ours = level(2, count=240), level(1, count=240, shift=-0.002)
    ours[2::3] += 0.003
    crps = {"challenger": ours, "base": champion + 0.01, "champion": champion}
    decision = judge(planted_scores(crps, series=3), GatePolicy(), champion="champion")
    assert all("better than" in reason for reason in decision.reasons[:2])
    assert "worse than champion on um:COIN2USDT" in decision.reasons[2]
    assert decision.verdict == "reject"


def test_more_impossible_bars_than_the_champions_reject_though_the_base_breaks_as_many():
    scores = planted_scores(
        {"challenger": level(1, shift=-0.001), "base": level(2), "champion": level(3)},
        violation_rate={"challenger": 0.17, "base": 0.17, "champion": 0.02},
    )
    decision = judge(scores, GatePolicy(), champion="champion")
    assert decision.verdict == "reject"
    assert any("15.0 percentage points more bars than champion" in reason for reason in decision.reasons)
    assert not any("more bars than base" in reason for reason in decision.reasons)


def test_harm_to_one_symbol_counts_at_the_confidence_of_the_policy():
    base, ours = level(2, count=240), level(1, count=240, shift=-0.002)
    noise = np.random.default_rng(3).normal(size=80)
    noise = (noise - noise.mean()) / noise.std()
    ours[2::3] = base[2::3] + LEVEL / 50 * (noise + 2 / math.sqrt(80))  # worse by two standard errors
    scores = planted_scores({"challenger": ours, "base": base}, series=3)
    *_, harmed = loss_tests(scores, "challenger", "base", by_step=False)
    assert harmed.difference > 0
    assert 0.01 < harmed.p_holm < 0.1
    assert judge(scores, GatePolicy()).verdict == "reject"
    assert judge(scores, GatePolicy(confidence=0.99)).verdict == "promote"


def test_a_difference_is_told_as_a_share_of_the_opponents_crps():
    scores = planted_scores({"challenger": np.full(COUNT, 0.015), "base": np.full(COUNT, 0.02)})
    found = compare(scores, GatePolicy(), challenger="challenger", opponent="base")
    assert found.relative == pytest.approx(-0.25, abs=1e-12)
    assert "-25.00 %" in judge(scores, GatePolicy()).reasons[0]


def test_exactly_as_many_origins_as_are_asked_for_are_enough():
    crps = {"challenger": level(1, shift=-0.002, count=30), "base": level(2, count=30)}
    assert judge(planted_scores(crps), GatePolicy()).verdict == "promote"
    assert "31 are needed" in judge(planted_scores(crps), GatePolicy(min_origins=31)).reasons[0]
