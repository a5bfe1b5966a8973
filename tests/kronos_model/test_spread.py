"""Conformal scaling of the spread: what it promises at any number of paths, what it moves and what it leaves."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from kronos_model.errors import DataError
from kronos_model.evaluation.metrics import crps
from kronos_model.spread import LEVELS, Spread, fewest_origins, order_quantiles, reachable
from tests.support.quantiles import path_quantiles

N, S, H = 60, 25, 3


def draws(
    seed: int,
    *,
    spread: float = 1,
    count: int = N,
    paths: int = S,
    tails: float = math.inf,
    horizon: int = H,
) -> tuple[np.ndarray, np.ndarray]:
    """Paths `spread` times as wide as the truth they forecast, a Student's t with `tails` degrees of freedom."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 0.01, (count, horizon))
    if tails < math.inf:
        truth = 0.01 * rng.standard_t(tails, (count, horizon))
    return rng.normal(0, 0.01 * spread, (count, paths, horizon)), truth


def made(*factors: tuple[float, ...]) -> Spread:
    """These factors per level and step."""
    return Spread(levels=LEVELS[: len(factors)], factors=factors)


def covers(samples: np.ndarray, realised: np.ndarray, share: float = 0.9) -> np.ndarray:
    low, high = path_quantiles(samples, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return ((low <= realised) & (realised <= high)).mean(axis=0)


def probability_inside(samples: np.ndarray, *, tails: float = math.inf, **_: float) -> float:
    """Of the 90 % band of paths, that a truth of `draws` lies in it: no truth is drawn, which would be noise."""
    law = norm if tails == math.inf else student(tails)
    low, high = order_quantiles(np.sort(samples, axis=1), (0.05, 0.95))
    return float((law.cdf(high / 0.01) - law.cdf(low / 0.01)).mean())


def test_the_rth_of_s_paths_stands_at_r_of_s_plus_one():
    samples = np.sort(np.random.default_rng(1).normal(size=(5, 9, H)), axis=1)
    shares = (0.05, 0.1, 0.25, 0.5, 0.77, 0.9, 0.99)
    expected = path_quantiles(samples, shares, axis=1)
    np.testing.assert_allclose(order_quantiles(samples, shares), expected, atol=1e-12)
    np.testing.assert_array_equal(order_quantiles(samples, (0.1, 0.9)), samples[:, [0, 8]].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("paths", "levels"),
    [(100, LEVELS), (19, LEVELS), (16, (0.5, 0.8, 15 / 17)), (10, (0.5, 0.8, 9 / 11)), (3, (0.5,))],
)
def test_few_paths_bound_no_wider_interval_than_their_outermost(paths, levels):
    assert reachable(LEVELS, paths) == levels


def test_two_paths_have_no_interval_within_them():
    with pytest.raises(DataError, match="needs at least 3 paths per origin, found 2; draw more samples"):
        Spread.fit(*draws(1, paths=2))


@pytest.mark.parametrize("paths", [10, 16, 20, 30, 100])
def test_a_perfect_forecaster_gets_factors_around_one_and_covers_what_it_says_at_any_number_of_paths(paths):
    samples, realised = draws(paths, count=6000, paths=paths)
    spread = Spread.fit(samples, realised)
    assert np.abs(np.array(spread.factors) - 1).max() < 0.05
    new, truth = draws(1000 + paths, count=6000, paths=paths)
    for level in reachable(LEVELS, paths):
        assert covers(new, truth, level).mean() == pytest.approx(level, abs=0.015)
        assert covers(spread.scale(new), truth, level).mean() == pytest.approx(level, abs=0.015)


@pytest.mark.parametrize("planted", [{"spread": 0.7}, {"spread": 1.2}, {"spread": 0.8, "tails": 4}])
@pytest.mark.parametrize("fitted_at", [20, 30, 100])
def test_factors_chosen_at_one_number_of_paths_cover_the_same_at_another(planted, fitted_at):
    spread = Spread.fit(*draws(1, count=4000, paths=fitted_at, **planted))
    covered = [
        probability_inside(spread.scale(draws(paths, count=4000, paths=paths, **planted)[0]), **planted)
        for paths in (16, 20, 24, 30, 32, 100)
    ]
    assert np.ptp(covered[1:]) < 0.01
    assert covered[0] == pytest.approx(15 / 17 - 0.9 + np.mean(covered[1:]), abs=0.01)  # its outermost paths
    assert np.abs(np.array(covered[1:]) - 0.9).max() < 0.015


@pytest.mark.parametrize("tails", [math.inf, 4])
@pytest.mark.parametrize("paths", [19, 20, 24, 30, 32, 50, 100])
def test_a_band_of_paths_like_the_truth_holds_what_it_says_wherever_its_ends_lie_between_two(paths, tails):
    rng, shape = np.random.default_rng(paths), (10_000, paths, 3)
    drawn = rng.normal(size=shape) if tails == math.inf else rng.standard_t(tails, shape)
    assert probability_inside(0.01 * drawn, tails=tails) == pytest.approx(0.9, abs=0.004)


@pytest.mark.parametrize("level", LEVELS)
def test_each_factor_is_the_smallest_that_covers_enough_of_the_steps_around_it(level):
    horizon = 13  # a window reaches two steps to either side
    samples, realised = draws(1, spread=0.4, horizon=horizon)
    row = Spread.fit(samples, realised).factors[LEVELS.index(level)]
    for h in range(horizon):
        needed = []
        for step in range(max(0, h - 2), min(horizon, h + 3)):
            for n in range(N):
                shares = [(1 - level) / 2, 0.5, (1 + level) / 2]
                low, middle, high = path_quantiles(samples[n, :, step], shares)
                y = realised[n, step]
                needed.append((y - middle) / (high - middle) if y > middle else (middle - y) / (middle - low))
        wanted = math.ceil(round(level * (N + 1) * len(needed) / N, 6))
        assert row[h] == pytest.approx(max(0.1, sorted(needed)[wanted - 1]), abs=1e-12)


def test_one_level_and_one_step_are_plain_split_conformal_prediction():
    samples, realised = draws(1, spread=0.4, horizon=1)
    found = Spread.fit(samples, realised, levels=(0.9,))
    inside = covers(found.scale(samples), realised)[0]
    assert round(inside * N) in (math.ceil((N + 1) * 0.9) - 1, math.ceil((N + 1) * 0.9))  # one is on the edge


@pytest.mark.parametrize(
    "planted",
    [{"spread": 0.4}, {"spread": 1.0}, {"spread": 2.5}, {"spread": 0.7, "tails": 2.5}],
    ids=["too narrow", "right", "too wide", "thin tails"],
)
def test_new_origins_are_covered_as_promised_at_every_level_whatever_the_fan_was(planted):
    shares, raw = [], []
    for seed in range(40):
        spread = Spread.fit(*draws(seed, **planted))
        samples, realised = draws(1000 + seed, count=200, **planted)
        shares.append([covers(spread.scale(samples), realised, level).mean() for level in LEVELS])
        raw.append([covers(samples, realised, level).mean() for level in LEVELS])
    off = np.abs(np.mean(shares, axis=0) - LEVELS)
    assert off.max() < 0.025
    assert planted == {"spread": 1.0} or (off < np.abs(np.mean(raw, axis=0) - LEVELS)).all()


@pytest.mark.parametrize("planted", [{"spread": 0.4}, {"spread": 2.5}, {"spread": 0.5, "tails": 2.5}])
def test_a_fan_that_is_off_forecasts_better_on_new_origins(planted):
    samples, realised = draws(2, count=400, **planted)
    scaled = Spread.fit(*draws(1, count=100, **planted)).scale(samples)
    assert crps(scaled, realised).mean() < 0.97 * crps(samples, realised).mean()


def test_levels_cost_no_sharpness_in_the_centre_where_only_the_tails_were_too_thin():
    planted = {"spread": 0.9, "tails": 2.0}
    samples, realised = draws(2, count=2000, **planted)
    several, one = (Spread.fit(*draws(1, count=400, **planted), levels=levels) for levels in (LEVELS, (0.9,)))
    assert crps(several.scale(samples), realised).mean() < crps(one.scale(samples), realised).mean()
    assert covers(one.scale(samples), realised, 0.5).mean() > 0.56  # as wide as the tails need it, everywhere


def test_pooled_factors_jump_less_from_step_to_step_than_those_of_each_step_alone():
    samples, realised = draws(1, spread=0.5, horizon=24)
    pooled = Spread.fit(samples, realised).factors[-1]
    alone = [Spread.fit(samples[:, :, h : h + 1], realised[:, h : h + 1]).factors[-1][0] for h in range(24)]
    assert np.abs(np.diff(pooled)).mean() < 0.4 * np.abs(np.diff(alone)).mean()


@pytest.mark.parametrize("count", [1, 2, 16, 25])
def test_each_path_moves_by_the_factor_of_its_own_rank(count):
    factors = np.array([0.5, 1.0, 3.0])
    returns = np.random.default_rng(1).normal(0, 0.01, (4, count, 1))
    scaled = made(*((factor,) for factor in factors)).scale(returns)
    for before, after in zip(returns[..., 0], scaled[..., 0], strict=True):
        for value, moved in zip(before, after, strict=True):
            level = abs(2 * (before <= value).sum() / (count + 1) - 1)
            middle = np.median(before)
            assert moved == pytest.approx(middle + np.interp(level, LEVELS, factors) * (value - middle))


@pytest.mark.parametrize("count", [2, 16, 25])
@pytest.mark.parametrize("factors", [(3.0, 0.2, 0.1), (0.1, 5.0, 0.3), (0.5, 1.0, 2.0)])
def test_the_order_of_paths_and_the_median_stay_even_with_factors_that_fall_outward(factors, count):
    spread = made(*((factor,) * H for factor in factors))
    returns = np.random.default_rng(1).normal(0, 0.01, (40, count, H)).round(3)  # with ties
    scaled = spread.scale(returns)
    order = np.argsort(returns, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(scaled, order, axis=1), axis=1) >= 0).all()
    np.testing.assert_allclose(np.median(scaled, axis=1), np.median(returns, axis=1), atol=0.0005)


def test_steps_beyond_the_last_factor_use_it_and_fewer_steps_use_the_first_ones():
    one = made((1.0, 2.0), (1.0, 3.0))
    returns = np.random.default_rng(2).normal(0, 0.01, (4, S, 5))
    long = made((1.0, 2.0, 2.0, 2.0, 2.0), (1.0, 3.0, 3.0, 3.0, 3.0)).scale(returns)
    np.testing.assert_array_equal(one.scale(returns), long)
    np.testing.assert_array_equal(one.scale(returns[:, :, :1]), long[:, :, :1])


def test_a_fan_without_width_gets_the_widest_factor():
    assert Spread.fit(np.zeros((N, S, H)), np.full((N, H), 0.01)).factors == ((10.0,) * H,) * 3


def test_too_few_origins_are_refused_and_told():
    with pytest.raises(DataError, match="needs at least 9 origins, found 8; widen the validation range"):
        Spread.fit(*draws(1, count=fewest_origins(0.9) - 1))
    Spread.fit(*draws(1, count=9))


@pytest.mark.parametrize(
    ("levels", "factors"),
    [
        ((0.9, 0.5), ((1.0,), (1.0,))),
        ((), ()),
        ((0.5,), ()),
        ((0.5, 0.9), ((1.0,), (1.0, 1.0))),
        ((0.5,), ((0.0,),)),
    ],
)
def test_what_is_no_spread_is_refused(levels, factors):
    with pytest.raises(ValueError, match="expected"):
        Spread(levels=levels, factors=factors)
