"""A small network from scratch that is far worse than a volatility cone: what is judged of it, and what then serves."""

from dataclasses import dataclass

import numpy as np
import pytest

from kronos_model.context import Context
from kronos_model.evaluation.fit_postprocess import fit_to_returns
from kronos_model.evaluation.gate import Decision, GatePolicy, judge
from kronos_model.evaluation.scores import Scores
from kronos_model.pool import deal, equal, member_of
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import REFERENCES, make_references
from kronos_model.sampling_config import SamplingConfig
from kronos_model.served import Served
from tests.support.scores import sampled_scores

FOUR_HOURS_MS = 4 * 3_600_000
LOOKBACK, HORIZON, SAMPLES, SERIES, ORIGINS = 64, 12, 100, 3, 60


@dataclass(frozen=True)
class Market:
    """Everything at the origins of one range, three series at each of their times."""

    drawn: dict[str, np.ndarray]  # log returns (N, S, H) of network and references
    base: np.ndarray
    realised: np.ndarray  # (N, H)
    origin_ms: np.ndarray
    pool: np.ndarray  # (N, S, H) of the references alone


def market(seed: int, *, knows: float) -> Market:
    """Closes whose volatility clusters; a network whose location is noise, and its spread, less so where it knows."""
    rng = np.random.default_rng(seed)
    moves = np.stack([garch(rng, 200 + ORIGINS * HORIZON) for _ in range(SERIES)])
    closes = 100 * np.exp(np.cumsum(moves, axis=1))
    ends = 200 - 1 + HORIZON * np.arange(ORIGINS)
    contexts = [context(closes, int(end)) for end in ends]
    truth = np.concatenate([np.cumsum(moves[:, end + 1 : end + 1 + HORIZON], axis=1) for end in ends])
    members, _ = make_references(LOOKBACK, samples=SAMPLES, seed=1)
    drawn = {
        name: np.concatenate([returns(one.forecast(at).paths, at) for at in contexts])
        for name, one in members.items()
    }
    serving, asked = Served.references(LOOKBACK), SamplingConfig(samples=SAMPLES)
    pool = np.concatenate([returns(serving.paths(at, asked, 1).paths, at) for at in contexts])
    sigma = np.concatenate([moves[:, end - 40 : end + 1].std(axis=1) for end in ends])[:, None, None]
    steps = np.arange(1, HORIZON + 1) / HORIZON
    shape = (len(truth), SAMPLES, HORIZON)

    def network(location: float, wrong: float) -> np.ndarray:
        scale = sigma * np.exp(rng.normal(0, wrong, (len(truth), 1, 1)))
        lean = location * sigma * np.sqrt(HORIZON) * rng.normal(size=(len(truth), 1, 1)) * steps
        return lean + np.cumsum(rng.normal(size=shape), axis=2) * scale

    drawn = {NETWORK: network(1.1, 0.8 * (1 - knows)), **drawn}
    times = np.repeat(ends, SERIES) * FOUR_HOURS_MS
    return Market(drawn=drawn, base=network(2.5, 1.0), realised=truth, origin_ms=times, pool=pool)


def garch(rng: np.random.Generator, count: int) -> np.ndarray:
    """One-bar log returns whose variance follows the last ones."""
    shocks, variance, moves = rng.normal(size=count), 1e-4, np.empty(count)
    for at, shock in enumerate(shocks):
        moves[at] = np.sqrt(variance) * shock
        variance = 2e-6 + 0.12 * moves[at] ** 2 + 0.86 * variance
    return moves


def context(closes: np.ndarray, end: int) -> Context:
    known = closes[:, end - LOOKBACK + 1 : end + 1].astype(np.float32)
    opened = np.concatenate([known[:, :1], known[:, :-1]], axis=1)
    high, low = np.maximum(opened, known) * 1.002, np.minimum(opened, known) * 0.998
    times = np.arange(end - LOOKBACK + 1, end + 1 + HORIZON, dtype=np.int64) * FOUR_HOURS_MS
    times = np.broadcast_to(times, (SERIES, LOOKBACK + HORIZON))
    return Context(
        features=np.stack([opened, high, low, known, np.ones_like(known), known], axis=-1),
        open_time=times[:, :LOOKBACK],
        future_open_time=times[:, LOOKBACK:],
        series=[f"um:COIN{index}USDT" for index in range(SERIES)],
        history=closes[:, : end + 1][:, -200:],
    )


def returns(paths: np.ndarray, at: Context) -> np.ndarray:
    return np.log(paths[..., 3].astype(np.float64) / at.features[:, -1, 3, None, None])


def fitted(validation: Market) -> PostProcess:
    return fit_to_returns(
        validation.drawn,
        validation.realised,
        validation.origin_ms,
        sampling=SamplingConfig(),
        lookback=LOOKBACK,
        interval="4h",
    )


def judged(found: PostProcess, test: Market) -> tuple[Scores, Decision]:
    bars = {name: np.exp(one)[..., None].repeat(6, axis=-1) for name, one in test.drawn.items()}
    last = np.ones(len(test.realised))
    paths = {
        "challenger": np.log(found.alone(bars[NETWORK], last)[..., 3]),
        "challenger_raw": test.drawn[NETWORK],
        "blend": np.log(found.blend(bars, last)[..., 3]),
        "base": test.base,
        "references": test.pool,
        **{name: one for name, one in test.drawn.items() if name != NETWORK},
    }
    pools = {"blend": found.deal(SAMPLES), "references": deal(equal(REFERENCES), SAMPLES)}
    scores = sampled_scores(
        paths,
        test.realised,
        series=SERIES,
        weights={"blend": found.pool},
        members={name: member_of(dealt) for name, dealt in pools.items()},
    )
    return scores, judge(scores, GatePolicy())


@pytest.mark.parametrize("seed", range(6))
def test_a_network_worse_than_a_cone_is_not_promoted_and_what_serves_is_as_good_as_the_best_of_them(seed):
    found = fitted(market(seed, knows=0.0))
    scores, decision = judged(found, market(seed + 100, knows=0.0))
    crps = {name: float(scores.crps[scores.index(name)].mean()) for name in scores.models}
    assert crps["challenger_raw"] > 1.25 * crps["ewma"]
    assert "challenger is better than base" in decision.reasons[0]
    assert decision.verdict != "promote"
    assert decision.served == "references"
    best = min(crps[name] for name in ("ewma", "har", "bootstrap"))
    assert crps[decision.served] <= 1.01 * best
    assert crps["blend"] <= 1.02 * crps["references"]
    assert not any("adds to the references" in reason for reason in decision.reasons)
