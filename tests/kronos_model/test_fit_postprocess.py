"""Post-processing fitted on synthetic truth: what each step finds where the right answer is known."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.fit_location import fit_location
from kronos_model.evaluation.fit_postprocess import choose_sampling, fit_to_returns, time_blocks
from kronos_model.evaluation.fit_weights import Distances, best_weights, shrunk_weights
from kronos_model.evaluation.metrics import crps, pool_crps
from kronos_model.pool import deal, member_of, pooled
from kronos_model.postprocess import NETWORK, PostProcess, Step, located, location_at
from kronos_model.sampling_config import SamplingConfig
from tests.support.quantiles import path_quantiles

T, SERIES, S, H = 60, 4, 20, 6
DAY_MS = 24 * 3_600_000
SAMPLING = SamplingConfig(temperature=0.9, top_p=0.95, samples=S)
REFERENCES = ("ewma", "har", "bootstrap")


def steps(scale: np.ndarray, rng: np.random.Generator, samples: int, horizon: int = H) -> np.ndarray:
    """Random walks (N, S, H) of these standard deviations (N,) a step."""
    moves = rng.normal(size=(len(scale), samples, horizon))
    return (scale[:, None, None] * moves).cumsum(axis=-1)


def market(
    seed: int,
    *,
    times: int = T,
    samples: int = S,
    signal: float = 0.0,
    seen: float = 0.0,
    noise: float = 0.0,
    volatility_error: float = 0.0,
    width: float = 1.0,
    reference_error: float = 0.3,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Paths of all members, the truth, and origin times.

    The truth drifts by `signal`, of which the network sees the share `seen`, with `noise` of its own, all in steps'
    standard deviations; it errs in the log volatility by `volatility_error` and is `width` times as wide.
    """
    rng = np.random.default_rng(seed)
    count = times * SERIES
    scale = 0.01 * np.exp(rng.normal(0, 0.5, count))
    drift = signal * scale[:, None] * rng.normal(size=(count, 1)) * np.arange(1, H + 1)
    realised = drift + steps(scale, rng, 1)[:, 0]
    own = noise * scale[:, None] * rng.normal(size=(count, 1)) * np.arange(1, H + 1)
    spread = width * scale * np.exp(rng.normal(0, volatility_error, count))
    returns = {NETWORK: (seen * drift + own)[:, None] + steps(spread, rng, samples)}
    for name in REFERENCES:
        returns[name] = steps(scale * np.exp(rng.normal(0, reference_error, count)), rng, samples)
    return returns, realised, np.tile(np.arange(times) * DAY_MS, SERIES)


def fitted(drawn: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray], **changes) -> PostProcess:
    return fit_to_returns(*drawn, sampling=SAMPLING, lookback=120, interval="1h", **changes)


def step_of(post: PostProcess, name: str) -> Step:
    return next(step for step in post.steps if step.name == name)


def served(post: PostProcess, returns: dict[str, np.ndarray]) -> np.ndarray:
    """Log returns of the blend."""
    paths = {**returns, NETWORK: located(returns[NETWORK], location_at(post.location, H))}
    together = pooled(paths, post.deal(returns[NETWORK].shape[1]))
    return post.spread.scale(together) if post.spread else together


def test_a_network_that_knows_the_move_keeps_its_location_and_gets_a_clear_weight():
    post = fitted(market(1, signal=0.6, seen=1.0))
    assert min(post.location) > 0.9
    assert post.pool[NETWORK] > 0.55  # of at most 5/8: half of the way to equal weights is always gone
    assert step_of(post, "blend").kept
    assert post.spread_alone is not None
    assert np.abs(np.array(post.spread_alone.factors) - 1).max() < 0.2


def test_a_network_that_sees_half_of_the_move_twice_as_large_keeps_half_of_its_location():
    post = fitted(market(1, signal=0.5, seen=2.0, times=200))
    assert post.location == pytest.approx((0.5,) * 4, abs=0.1)


def test_a_location_that_is_noise_is_taken_away():
    post = fitted(market(1, noise=0.6))
    assert max(post.location) < 0.1
    step = step_of(post, "location")
    assert step.kept
    assert step.before is not None
    assert step.after is not None
    assert step.after < 0.9 * step.before
    assert step.reason == (
        f"it moves the CRPS of held-out validation origins from {step.before:.2f} to {step.after:.2f} bps"
    )


@pytest.mark.parametrize("left", [0.0, 0.5])
@pytest.mark.parametrize("samples", [10, 20, 30])
def test_taking_a_location_away_that_is_none_is_no_gain(samples, left):
    rng = np.random.default_rng(samples)
    paths, realised = rng.normal(size=(60_000, samples, 1)), rng.normal(size=(60_000, 1))
    score = crps(paths, realised).mean()
    moved = crps(located(paths, np.array([left])), realised).mean()
    assert moved == pytest.approx(score, rel=0.011)
    without = crps(paths - np.median(paths, axis=1, keepdims=True), realised).mean()
    assert without < (1 - 0.2 / samples) * score  # what the median of all paths seems to gain


def test_an_uncertain_share_is_shrunk_towards_the_last_close():
    shares = []
    for times in (30, 600):
        drawn = [market(seed, times=times, signal=0.1, seen=1.0) for seed in range(4)]
        shares.append(np.mean([fit_location(one[NETWORK], y, time_blocks(t)) for one, y, t in drawn]))
    assert shares[0] < shares[1] - 0.1


def test_weights_are_those_of_a_search_over_the_simplex():
    rng = np.random.default_rng(4)
    grid = np.array([w for w in product(range(41), repeat=4) if sum(w) == 40]) / 40
    for width, error in ((1.0, 0.0), (0.6, 0.2), (1.5, 0.4)):
        returns, realised, _ = market(int(10 * width), width=width, volatility_error=error)
        found = Distances.of(returns, realised)
        truth, between = found.truth.mean(axis=0), found.between.mean(axis=0)
        values = grid @ truth - np.einsum("gi,ij,gj->g", grid, between, grid) / 2
        best = best_weights(truth, between)
        assert best.sum() == pytest.approx(1)
        assert (best >= 0).all()
        assert found.crps(best).mean() <= values.min() + 1e-12
        assert found.crps(best).mean() == pytest.approx(values.min(), rel=1e-3)
        scaled = best_weights(1e-6 * truth, 1e-6 * between)
        np.testing.assert_allclose(scaled, best, atol=1e-6)  # of any unit
        shuffled = rng.permutation(4)
        turned = best_weights(truth[shuffled], between[np.ix_(shuffled, shuffled)])
        np.testing.assert_allclose(turned, best[shuffled], atol=1e-6)


def test_the_crps_of_a_pool_is_that_of_draws_from_its_members():
    rng = np.random.default_rng(5)
    returns, realised, _ = market(5, times=500, samples=40, noise=0.4)
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    member = rng.choice(4, size=(len(realised), 40, 1), p=weights)
    drawn = np.select([member == at for at in range(4)], list(returns.values()))
    exact = Distances.of(returns, realised).crps(weights).mean()
    assert exact == pytest.approx(crps(drawn, realised).mean(), rel=0.01)
    for at, name in enumerate(returns):
        assert Distances.of(returns, realised).crps(np.eye(4)[at]).mean() == pytest.approx(
            crps(returns[name], realised).mean(), rel=1e-9
        )


@pytest.mark.parametrize("samples", [8, 20])
def test_the_crps_of_dealt_paths_is_that_of_the_pool_and_not_lower(samples):
    returns, realised, _ = market(6, times=2500, samples=samples, noise=0.6)
    weights = {NETWORK: 0.5, "ewma": 0.25, "har": 0.25, "bootstrap": 0.0}
    dealt = deal(weights, samples)
    paths = pooled(returns, dealt)
    exact = Distances.of(returns, realised).crps(np.array(list(weights.values())))
    found = pool_crps(paths, realised, member_of(dealt)).mean(axis=1)
    noise = 3 * (found - exact).std() / np.sqrt(len(exact))
    assert found.mean() == pytest.approx(exact.mean(), abs=noise)
    assert crps(paths, realised).mean() < exact.mean() - noise
    one = pool_crps(paths, realised, np.zeros(samples, np.int64))
    np.testing.assert_allclose(one, crps(paths, realised), rtol=1e-9)


def test_members_that_are_alike_get_nearly_equal_weights_and_the_same_ones_equal():
    found = []
    for seed in range(6):
        returns, realised, times = market(seed, volatility_error=0.3)
        found.append(shrunk_weights(Distances.of(returns, realised), time_blocks(times)))
        assert found[-1].min() >= 0.125 - 1e-9  # half of an equal weight
    assert np.mean(found, axis=0).tolist() == pytest.approx([0.25] * 4, abs=0.1)
    np.testing.assert_allclose(best_weights(np.ones(3), np.ones((3, 3))), np.full(3, 1 / 3))
    np.testing.assert_allclose(best_weights(np.zeros(3), np.zeros((3, 3))), np.full(3, 1 / 3))


@pytest.mark.parametrize("seed", range(4))
def test_a_network_that_is_worse_than_the_references_gets_next_to_nothing_and_the_blend_is_no_worse(seed):
    broken = {"noise": 0.3, "volatility_error": 1.2, "width": 3.0, "reference_error": 0.2}
    post = fitted(market(seed, **broken))
    assert post.pool[NETWORK] < 0.1
    returns, realised, _ = market(100 + seed, times=400, **broken)
    references = pooled(returns, dict(zip(REFERENCES, (7, 7, 6), strict=True)))
    assert crps(served(post, returns), realised).mean() < 1.005 * crps(references, realised).mean()


def test_the_references_serve_alone_where_held_out_times_are_against_the_network():
    returns, realised, times = market(8)
    odd = time_blocks(times) % 2 == 1
    returns[NETWORK][odd, :, :] *= 8  # what is learnt on one half does harm in the other
    post = fitted((returns, realised, times))
    assert post.pool == pytest.approx({NETWORK: 0.0, **dict.fromkeys(REFERENCES, 1 / 3)})
    step = step_of(post, "blend")
    assert step.before is not None
    assert step.after is not None
    assert not step.kept
    assert step.after > step.before
    assert step.reason.startswith("it would move the CRPS of held-out validation origins from")


def test_a_blend_covers_what_it_says_and_forecasts_better_than_the_references():
    planted = {"volatility_error": 0.1, "width": 0.7, "reference_error": 0.5, "noise": 0.3}
    post = fitted(market(9, times=200, **planted))
    returns, realised, _ = market(10, times=800, **planted)
    found = served(post, returns)
    low, high = path_quantiles(found, [0.05, 0.95], axis=1)
    assert ((low <= realised) & (realised <= high)).mean() == pytest.approx(0.9, abs=0.02)
    references = pooled(returns, dict(zip(REFERENCES, (7, 7, 6), strict=True)))
    assert crps(found, realised).mean() < 0.99 * crps(references, realised).mean()


@pytest.mark.parametrize("harmful", [False, True])
def test_each_step_begins_where_the_former_one_ended(harmful):
    returns, realised, times = market(8, noise=0.3, width=0.7)
    if harmful:
        returns[NETWORK][time_blocks(times) % 2 == 1] *= 8
    post = fitted((returns, realised, times))
    assert step_of(post, "blend").kept != harmful
    for former, name in (("location", "spread of the network"), ("blend", "spread")):
        ended = step_of(post, former)
        assert step_of(post, name).before == (ended.after if ended.kept else ended.before)
    told = step_of(post, "blend")
    assert f"from {told.before:.2f} (the references alone) to {told.after:.2f} bps" in told.reason


def test_a_spread_that_would_harm_is_left_out_and_told():
    returns, realised, times = market(11, volatility_error=0.1)
    realised[time_blocks(times) % 2 == 0] *= 5
    post = fitted((returns, realised, times))
    step = step_of(post, "spread")
    assert (step.kept, post.spread) == (False, None)
    assert step.reason.startswith("it would move the CRPS of held-out validation origins from")


def test_two_fits_are_the_same_and_name_what_they_were_fitted_for():
    first, second = (fitted(market(12, noise=0.3)) for _ in range(2))
    assert first == second
    assert (first.horizon, first.lookback, first.interval) == (H, 120, "1h")
    assert (first.origins, first.samples) == (T * SERIES, S)
    assert (first.temperature, first.top_k, first.top_p) == (0.9, 0, 0.95)
    assert [step.name for step in first.steps] == ["location", "spread of the network", "blend", "spread"]
    chosen = Step(name="sampling", kept=False, reason="so")
    assert fitted(market(12, noise=0.3), chosen=chosen).steps == (chosen, *first.steps)


def test_members_in_another_order_get_the_same_weights():
    returns, realised, times = market(13, noise=0.2)
    turned = dict(reversed(returns.items()))
    ours, theirs = fitted((returns, realised, times)), fitted((turned, realised, times))
    assert theirs.members[0] == NETWORK
    assert theirs.pool == pytest.approx(ours.pool)


def test_stretches_of_time_are_cut_alike_for_all_series():
    times = np.tile(np.arange(20) * DAY_MS, 3)
    blocks = time_blocks(times)
    assert sorted(set(blocks.tolist())) == list(range(8))
    assert all(len(set(blocks[times == one].tolist())) == 1 for one in times)
    assert (np.diff(blocks[:20]) >= 0).all()
    assert time_blocks(times[:2]).tolist() == [0, 1]


OBSTACLES = {
    "few origins": (
        lambda r, y, t: ({name: one[:8] for name, one in r.items()}, y[:8], t[:8]),
        "not tried: half of the validation range has 4 origins, and 9 are needed",
    ),
    "one path": (
        lambda r, y, t: ({name: one[:, :1] for name, one in r.items()}, y, t),
        "not tried: there are 1 paths per origin, and 3 are needed",
    ),
    "a market that stands still": (
        lambda r, y, t: ({name: 0 * one for name, one in r.items()}, 0 * y, t),
        "not tried: the market does not move in the validation range",
    ),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_where_nothing_can_be_tried_the_references_serve_alone_and_every_step_says_why(kind):
    change, reason = OBSTACLES[kind]
    post = fitted(change(*market(1, noise=0.5)))
    assert post.pool == pytest.approx({NETWORK: 0.0, **dict.fromkeys(REFERENCES, 1 / 3)})
    assert (post.location, post.spread, post.spread_alone) == ((1.0,), None, None)
    assert {(step.kept, step.reason) for step in post.steps} == {(False, reason)}


def test_one_series_that_stands_still_among_others_spoils_nothing():
    returns, realised, times = market(14)
    still = slice(0, T)
    realised[still] = 0
    for paths in returns.values():
        paths[still] = 0
    post = fitted((returns, realised, times))
    moving = slice(T, None)
    without = fitted(
        ({name: paths[moving] for name, paths in returns.items()}, realised[moving], times[moving])
    )
    assert post == without
    assert post.origins == 3 * T


def test_a_network_without_references_is_left_to_itself():
    returns, realised, times = market(15)
    post = fitted(({NETWORK: returns[NETWORK]}, realised, times))
    assert post.pool == {NETWORK: 1.0}
    assert step_of(post, "blend").reason == "not tried: there are no references"
    assert post.spread == post.spread_alone


@pytest.mark.parametrize("name", [NETWORK, "har"])
def test_broken_paths_are_refused_by_the_members_name(name):
    returns, realised, times = market(1)
    returns[name][3, 2, 1] = np.nan
    told = f"expected finite paths of {name}, found others at the origin 1970-01-04T00:00:00.000Z"
    with pytest.raises(ModelError, match=told):
        fitted((returns, realised, times))


def test_members_of_other_origins_are_refused():
    returns, realised, times = market(1)
    with pytest.raises(
        DataError, match=r"expected paths of har for 240 origins and 6 steps, found the shape \(5"
    ):
        fitted(({**returns, "har": returns["har"][:5]}, realised, times))
    with pytest.raises(DataError, match="expected paths of network among the members, found har"):
        fitted(({"har": returns["har"]}, realised, times))


def candidates(
    seed: int, widths: dict[float, float]
) -> tuple[dict[SamplingConfig, np.ndarray], np.ndarray, np.ndarray]:
    """Paths of a network that is so wide at these temperatures, with few paths each."""
    returns, realised, times = market(seed, samples=8)
    centred = returns[NETWORK]
    return {replace(SAMPLING, temperature=t): width * centred for t, width in widths.items()}, realised, times


def test_sampling_settings_are_chosen_where_both_halves_agree():
    found = choose_sampling(*candidates(1, {1.0: 2.0, 0.8: 1.0, 0.6: 0.4}))
    assert found.sampling.temperature == 0.8
    assert found.step.kept
    assert found.step.before is not None
    assert found.step.after is not None
    assert found.step.after < found.step.before


def test_the_default_stays_where_it_is_best_or_the_halves_disagree():
    found = choose_sampling(*candidates(2, {1.0: 1.0, 0.8: 2.0, 0.6: 0.4}))
    assert (found.sampling.temperature, found.step.kept) == (1.0, False)
    drawn, realised, times = candidates(3, {1.0: 1.0, 0.8: 1.0})
    odd = time_blocks(times) % 2 == 1
    drawn[replace(SAMPLING, temperature=0.8)][odd] *= 4  # much better in one half, much worse in the other
    drawn[replace(SAMPLING, temperature=1.0)][~odd] *= 2
    found = choose_sampling(drawn, realised, times)
    assert (found.sampling.temperature, found.step.kept) == (1.0, False)


def test_one_candidate_or_few_origins_are_no_choice_and_told():
    drawn, realised, times = candidates(1, {1.0: 1.0, 0.8: 2.0})
    default = next(iter(drawn))
    only = choose_sampling({default: drawn[default]}, realised, times)
    assert (only.sampling, only.step.reason) == (default, "not tried: there is one candidate")
    few = choose_sampling({one: paths[:8] for one, paths in drawn.items()}, realised[:8], times[:8])
    assert few.sampling == default
    assert few.step.reason == "not tried: half of the validation range has 4 origins, and 9 are needed"
