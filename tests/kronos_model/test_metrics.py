"""Every metric against a loop that spells out its formula."""

import math
from itertools import pairwise, permutations
from statistics import mean

import numpy as np
import pytest
import scoringrules

from kronos_model.evaluation import metrics
from kronos_model.spread import order_quantiles
from tests.support.quantiles import path_quantiles

B, S, H = 5, 7, 4


@pytest.fixture
def samples() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.02, (B, S, H))


@pytest.fixture
def realised() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 0.02, (B, H))


def each(samples: np.ndarray, realised: np.ndarray):
    for b in range(B):
        for h in range(H):
            yield b, h, [float(samples[b, s, h]) for s in range(S)], float(realised[b, h])


def test_log_returns_are_taken_from_the_last_known_close_in_double_precision():
    close = np.random.default_rng(3).uniform(50, 150, (B, S, H)).astype(np.float32)
    last = np.random.default_rng(4).uniform(50, 150, B).astype(np.float32)
    found = metrics.log_returns(close, last)
    for b in range(B):
        for s in range(S):
            for h in range(H):
                assert found[b, s, h] == pytest.approx(
                    math.log(float(close[b, s, h]) / float(last[b])), abs=1e-12
                )


def test_crps_is_the_fair_estimator(samples, realised):
    found = metrics.crps(samples, realised)
    for b, h, paths, truth in each(samples, realised):
        distance = mean(abs(x - truth) for x in paths)
        spread = mean(abs(x - y) for x, y in permutations(paths, 2))
        assert found[b, h] == pytest.approx(distance - spread / 2, abs=1e-9)
    again = metrics.crps(np.sort(samples, axis=1), realised, sorted_samples=True)
    np.testing.assert_allclose(again, found, atol=1e-15)


def test_crps_of_a_point_forecast_is_its_absolute_error(realised):
    point = np.repeat(np.full((B, 1, H), 0.013), 2, axis=1)
    np.testing.assert_allclose(metrics.crps(point, realised), np.abs(0.013 - realised), atol=1e-12)


def test_crps_of_one_path_is_refused(samples, realised):
    with pytest.raises(ValueError, match="CRPS needs at least 2 sample paths per origin, found 1"):
        metrics.crps(samples[:, :1], realised)


def quantile_of(values: list[float], level: float) -> float:
    values, at = sorted(values), min(max(level * (len(values) + 1) - 1, 0), len(values) - 1)
    below = min(int(at), len(values) - 2)
    return values[below] + (at - below) * (values[below + 1] - values[below])


LEVELS = (0.025, 0.05, 0.25, 0.5, 0.9, 0.975)


def test_quantiles_are_linear_and_equal_numpys(samples, realised):
    found = order_quantiles(np.sort(samples, axis=1), LEVELS)
    np.testing.assert_allclose(found, path_quantiles(samples, LEVELS, axis=1), atol=1e-15)
    for b, h, paths, _ in each(samples, realised):
        for q, level in enumerate(LEVELS):
            assert found[q, b, h] == pytest.approx(quantile_of(paths, level), abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_cover_what_lies_between_their_ends_and_winkler_punishes_the_rest(samples, realised, share):
    low, high = order_quantiles(np.sort(samples, axis=1), [(1 - share) / 2, (1 + share) / 2])
    inside, scored = metrics.covered(low, high, realised), metrics.winkler(low, high, realised, share)
    for b, h, paths, truth in each(samples, realised):
        ends = [quantile_of(paths, (1 + sign * share) / 2) for sign in (-1, 1)]
        assert inside[b, h] == (ends[0] <= truth <= ends[1])
        miss = max(ends[0] - truth, 0) + max(truth - ends[1], 0)
        assert scored[b, h] == pytest.approx(ends[1] - ends[0] + 2 * miss / (1 - share), abs=1e-12)
    assert 0 < inside.mean() < 1
    public = scoringrules.interval_score(realised, low, high, 1 - share)
    np.testing.assert_allclose(scored, public, atol=1e-12)


def test_pinball_is_the_mean_quantile_loss_and_equals_a_public_one(samples, realised):
    values = order_quantiles(np.sort(samples, axis=1), LEVELS)
    found = metrics.pinball(values, realised, LEVELS)
    for b, h, paths, truth in each(samples, realised):
        losses = []
        for level in LEVELS:
            miss = truth - quantile_of(paths, level)
            losses.append(level * miss if miss >= 0 else (level - 1) * miss)
        assert found[b, h] == pytest.approx(mean(losses), abs=1e-12)
    public = [
        scoringrules.quantile_score(realised, q, level) for q, level in zip(values, LEVELS, strict=True)
    ]
    np.testing.assert_allclose(found, np.mean(public, axis=0), atol=1e-12)


def test_pit_is_the_rank_of_the_truth_among_the_paths_filled_at_random(samples, realised):
    samples[:, 1] = samples[:, 0]
    realised[:2] = samples[:2, 0]  # ties
    uniforms = np.random.default_rng(6).random((B, H))
    found = metrics.pit(samples, realised, uniforms)
    for b, h, paths, truth in each(samples, realised):
        below, equal = sum(x < truth for x in paths), sum(x == truth for x in paths)
        assert found[b, h] == pytest.approx((below + uniforms[b, h] * (1 + equal)) / (S + 1), abs=1e-12)


def test_pit_of_calibrated_paths_is_uniform():
    from scipy.stats import kstest

    rng = np.random.default_rng(7)
    drawn = rng.normal(size=(2000, 6, 1))
    found = metrics.pit(drawn[:, 1:], drawn[:, 0], rng.random((2000, 1)))
    assert kstest(found[:, 0], "uniform").pvalue > 0.05


def test_probability_up_counts_paths_above_zero_and_half_of_those_that_stay():
    samples = np.array([[[0.1], [0.2], [0.0], [-0.1]]])
    assert metrics.probability_up(samples) == [[0.625]]


def test_energy_score_is_a_double_loop_over_whole_paths_and_equals_a_public_one(samples, realised):
    found = metrics.energy_score(samples, realised)
    for b in range(B):
        paths = [[float(v) for v in path] for path in samples[b]]
        truth = [float(v) for v in realised[b]]
        spread = mean(math.dist(x, y) for x, y in permutations(paths, 2))
        assert found[b] == pytest.approx(mean(math.dist(x, truth) for x in paths) - spread / 2, abs=1e-9)
    public = scoringrules.es_ensemble(realised, samples, m_axis=1, v_axis=2, estimator="fair")
    np.testing.assert_allclose(found, public, atol=1e-9)


def test_variance_sums_the_squared_returns_of_every_bar_the_first_included(samples, realised):
    found, of_paths = metrics.variance(realised), metrics.variance(samples)
    for b in range(B):
        bars = [0.0, *(float(v) for v in realised[b])]
        assert found[b] == pytest.approx(sum((y - x) ** 2 for x, y in pairwise(bars)), abs=1e-15)
        bars = [0.0, *(float(v) for v in samples[b, 2])]
        assert of_paths[b, 2] == pytest.approx(sum((y - x) ** 2 for x, y in pairwise(bars)), abs=1e-15)


def test_correlations_equal_scipys_and_are_nan_where_one_side_does_not_vary(samples, realised):
    from scipy.stats import pearsonr, spearmanr

    samples[:, 0, 1] = samples[:, 0, 0]  # ties
    for b in range(B):
        left, right = samples[b, 0], realised[b]
        found, ranks = metrics.correlation(left, right), metrics.rank_correlation(left, right)
        assert found == pytest.approx(pearsonr(left, right).statistic, abs=1e-9)
        assert ranks == pytest.approx(spearmanr(left, right).statistic, abs=1e-9)
    flat = np.full((2, H), 100.1)
    assert np.isnan(metrics.correlation(flat, realised[:2])).all()
    assert np.isnan(metrics.rank_correlation(realised[:2], flat)).all()


def test_skill_is_one_minus_the_ratio_and_undefined_without_a_reference():
    assert metrics.skill(3.0, 4.0) == pytest.approx(0.25)
    assert metrics.skill(5.0, 4.0) == pytest.approx(-0.25)
    assert metrics.skill(0.0, 0.0) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (27, 50), (511, 1000)])
def test_wilson_interval_equals_scipy(hits, count):
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = metrics.wilson_interval(hits / count, count)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_wilson_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="positive count"):
        metrics.wilson_interval(0.5, 0)


def test_independent_count_is_the_largest_set_without_overlap():
    rng = np.random.default_rng(5)
    for _ in range(50):
        origins = np.sort(rng.choice(40, size=8, replace=False)).astype(np.int64)
        horizon = int(rng.integers(1, 15))
        best = 0
        for mask in range(1 << 8):
            chosen = [int(o) for i, o in enumerate(origins) if mask >> i & 1]
            if all(b - a >= horizon for a, b in pairwise(chosen)):
                best = max(best, len(chosen))
        assert metrics.independent_count(rng.permutation(origins), horizon) == best
