"""What the gate asks beside better weights: a network must add something to forecasts that cost nothing."""

from dataclasses import replace

import numpy as np
import pytest

from kronos_model.evaluation.fit_postprocess import fit_to_returns
from kronos_model.evaluation.gate import Decision, GatePolicy, judge
from kronos_model.pool import deal, equal, member_of, pooled
from kronos_model.postprocess import FEWEST_FOR_MEDIAN, NETWORK, PostProcess
from kronos_model.sampling_config import SamplingConfig
from tests.support.scores import HOUR_MS, planted_scores, sampled_scores

LEVEL = 0.02
REFERENCES = ("ewma", "har", "bootstrap")


def night(
    *, blend: float, seed: int = 0, count: int = 200, noise: float = 0.05, weight: float = 0.4
) -> Decision:
    """A challenger far better than its base, whose blend is so many times as bad as the references alone."""
    rng = np.random.default_rng(seed)
    references = np.abs(rng.normal(LEVEL, LEVEL / 3, count))
    crps = {
        "challenger": references * 1.3,
        "base": references * 1.6,
        "blend": references * blend + rng.normal(0, noise * LEVEL, count),
        "references": references,
    }
    return judge(planted_scores(crps, weight=weight), GatePolicy())


def adds(decision: Decision) -> str:
    (sentence,) = (reason for reason in decision.reasons if reason.startswith("the network"))
    return sentence


def test_better_than_the_base_and_thirty_percent_worse_than_a_cone_is_not_promoted():
    harmful = night(blend=1.08)
    assert harmful.verdict == "reject"
    assert "challenger is better than base" in harmful.reasons[0]
    assert "the network harms the references: its weight in the blend is 40 %" in adds(harmful)
    assert harmful.served == "references"
    references = np.full(200, LEVEL) * np.random.default_rng(1).uniform(0.8, 1.2, 200)
    alone = planted_scores(
        {"challenger": 1.3 * references, "base": 1.6 * references, "references": references}
    )
    decision = judge(alone, GatePolicy())
    assert (decision.verdict, decision.served) == ("reject", "references")
    assert "is not known, for it was not pooled with them" in decision.reasons[-2]


def test_a_network_without_weight_has_earned_no_place_however_good_the_pool_is():
    for blend in (0.95, 1.01):  # what differs is the spread, which is not the network's doing
        decision = night(blend=blend, noise=0.01, weight=0.0)
        assert decision.verdict == "keep"
        assert "adds nothing yet to the references: its weight in the blend is 0 %" in adds(decision)


def test_as_good_as_the_references_is_never_called_better_than_they():
    claims = [adds(night(blend=1.0, seed=seed)) for seed in range(60)]
    assert sum("adds to the references" in one for one in claims) <= 6  # 5 % are meant
    assert sum("adds nothing yet for certain to the references" in one for one in claims) >= 50
    exactly = night(blend=1.0, noise=0.0)
    assert "adds nothing yet for certain" in adds(exactly)
    assert not any("better than references" in reason for reason in exactly.reasons)


def test_two_percent_better_is_told_where_origins_suffice_and_not_claimed_where_they_do_not():
    few = [night(blend=0.98, seed=seed, count=60, noise=0.12) for seed in range(30)]
    many = [night(blend=0.98, seed=seed, count=1000, noise=0.12) for seed in range(30)]
    assert all(one.verdict == "promote" and one.served == "blend" for one in many)
    assert all("the network adds to the references" in adds(one) for one in many)
    assert not any(one.verdict == "reject" for one in few)
    assert sum("adds nothing yet for certain" in adds(one) for one in few) >= 15


def test_a_blend_that_is_a_little_worse_hardly_ever_earns_a_place():
    nights = [night(blend=1.02, seed=seed, count=300, noise=0.12) for seed in range(100)]
    assert sum(one.verdict == "promote" for one in nights) <= 3


def test_a_blend_that_may_be_much_worse_by_its_interval_has_to_wait():
    noise = np.random.default_rng(5).normal(0, 0.3 * LEVEL, 40)
    references = np.full(40, LEVEL)
    for spread, verdict in ((1.0, "keep"), (0.1, "promote")):  # half a percent better, by both
        blend = 0.995 * references + spread * (noise - noise.mean())
        crps = {"challenger": references, "base": 1.5 * references, "blend": blend, "references": references}
        assert judge(planted_scores(crps, weight=0.4), GatePolicy()).verdict == verdict


def test_a_place_need_not_be_earned_where_the_policy_does_not_ask():
    references = np.full(200, LEVEL) * np.random.default_rng(1).uniform(0.8, 1.2, 200)
    crps = {"challenger": 1.3 * references, "base": 1.6 * references, "references": references}
    decision = judge(planted_scores(crps), GatePolicy(reference_margin=None))
    assert (decision.verdict, decision.served) == ("promote", "challenger")
    assert any("challenger against references, CRPS difference +" in reason for reason in decision.reasons)


def test_a_blend_worse_than_the_references_on_one_symbol_is_rejected():
    rng = np.random.default_rng(2)
    references = np.abs(rng.normal(LEVEL, LEVEL / 3, 240))
    blend = 0.95 * references + rng.normal(0, LEVEL / 50, 240)
    blend[2::3] = 1.03 * references[2::3]
    crps = {"challenger": references, "base": 1.2 * references, "blend": blend, "references": references}
    decision = judge(planted_scores(crps, series=3, weight=0.4), GatePolicy())
    assert decision.verdict == "reject"
    assert any("blend is worse than references on um:COIN2USDT" in reason for reason in decision.reasons)


def test_the_coverage_asked_for_is_that_of_what_would_be_served():
    references = np.abs(np.random.default_rng(3).normal(LEVEL, LEVEL / 3, 200))
    crps = {
        "challenger": references,
        "base": 1.2 * references,
        "blend": 0.9 * references,
        "references": references,
    }
    for covered, verdict in (({"challenger": 0.5}, "promote"), ({"blend": 0.5}, "reject")):
        decision = judge(planted_scores(crps, weight=0.4, coverage_90=covered), GatePolicy())
        assert decision.verdict == verdict
        assert "the 90 % band of blend covers" in decision.reasons[-1]


def test_what_serves_is_the_champions_blend_as_long_as_nobody_is_promoted():
    level = np.full(200, LEVEL)
    crps = dict.fromkeys(("challenger", "base", "champion", "champion_blend", "blend"), level)
    assert judge(planted_scores(crps), GatePolicy(), champion="champion").served == "champion_blend"
    del crps["champion_blend"]  # a champion from before there was any blend
    assert judge(planted_scores(crps), GatePolicy(), champion="champion").served == "champion"
    assert judge(planted_scores(crps), GatePolicy()).served == "references"


def test_a_market_that_does_not_move_ends_in_a_verdict():
    still = np.zeros(200)
    scores = planted_scores(
        {"challenger": still, "base": still, "blend": still, "references": still}, weight=0.4
    )
    decision = judge(replace(scores, realised=np.zeros_like(scores.realised)), GatePolicy())
    assert decision.verdict == "keep"
    assert "the market does not move in the test range" in decision.reasons[0]


def test_too_few_origins_say_that_nothing_is_known_of_what_the_network_adds():
    decision = night(blend=0.9, count=29)
    assert decision.verdict == "keep"
    assert decision.reasons[1] == (
        "the network adds nothing yet to the references that could be told: its weight in the blend is 40 %"
    )


def market(count: int, paths: int, horizon: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Log returns of a forecaster with which the truth is exchangeable, of a base twice too wide, of three cones."""
    rng = np.random.default_rng(seed)
    sigma = 0.01 * np.exp(rng.normal(0, 0.4, count))[:, None, None]
    walks = np.cumsum(rng.normal(size=(count, paths + 1, horizon)), axis=2) * sigma
    drawn = {NETWORK: walks[:, 1:], "base": 2 * np.cumsum(rng.normal(size=walks[:, 1:].shape), 2) * sigma}
    for name in REFERENCES:
        wrong = np.exp(rng.normal(0, 0.5, count))[:, None, None]
        drawn[name] = np.cumsum(rng.normal(size=walks[:, 1:].shape), 2) * sigma * wrong
    return drawn, walks[:, 0]


def served(found: PostProcess, drawn: dict[str, np.ndarray], paths: int) -> dict[str, np.ndarray]:
    """What is judged, from what was drawn."""
    bars = {name: np.exp(one)[..., None].repeat(6, axis=-1) for name, one in drawn.items()}
    last = np.ones(len(bars[NETWORK]))
    made = {
        "challenger": found.alone(bars[NETWORK][:, :paths], last),
        "blend": found.blend(bars, last, samples=paths),
    }
    return {name: np.log(one[..., 3]) for name, one in made.items()} | {
        "base": drawn["base"][:, :paths],
        "references": pooled(drawn, deal(equal(REFERENCES), paths)),
    }


def fitted(drawn: dict[str, np.ndarray], truth: np.ndarray) -> PostProcess:
    times = np.arange(len(truth), dtype=np.int64) * 24 * HOUR_MS
    members = {name: one for name, one in drawn.items() if name != "base"}
    return fit_to_returns(members, truth, times, sampling=SamplingConfig(), lookback=64, interval="1h")


@pytest.mark.parametrize(("paths", "origins"), [(10, 4000), (16, 3000), (32, 1500), (100, 1500)])
def test_a_perfect_forecaster_is_promoted_at_any_number_of_paths(paths, origins):
    for seed in range(4):
        found = fitted(*market(600, paths, 4, seed))
        drawn, truth = market(origins, max(paths, FEWEST_FOR_MEDIAN), 4, seed + 100)
        members = {"blend": found.deal(paths), "references": deal(equal(REFERENCES), paths)}
        scores = sampled_scores(
            served(found, drawn, paths),
            truth,
            weights={"blend": found.pool},
            members={name: member_of(dealt) for name, dealt in members.items()},
        )
        decision = judge(scores, GatePolicy())
        assert decision.verdict == "promote", decision.reasons
        assert found.pool[NETWORK] > 0.3


@pytest.mark.parametrize("paths", [10, 16, 32, 100])
def test_a_perfect_forecaster_is_never_rejected_for_its_coverage(paths):
    for seed in range(10):
        drawn, truth = market(120, paths, 4, seed)
        judged = {"challenger": drawn[NETWORK], "base": drawn["base"], "references": drawn["ewma"]}
        decision = judge(sampled_scores(judged, truth), GatePolicy())
        assert decision.verdict != "reject", decision.reasons
        assert ("paths bound no band wider than" in decision.reasons[-1]) == (paths < 19)
