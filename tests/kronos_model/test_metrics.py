"""Every metric against a loop that spells out its formula."""

import math
from itertools import pairwise, permutations
from statistics import mean, median

import numpy as np
import pytest

from kronos_model.evaluation import metrics

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


def test_absolute_error_is_that_of_the_median(samples, realised):
    found = metrics.absolute_error(samples, realised)
    for b, h, paths, truth in each(samples, realised):
        assert found[b, h] == pytest.approx(abs(median(paths) - truth), abs=1e-9)


def test_squared_error_is_that_of_the_mean(samples, realised):
    found = metrics.squared_error(samples, realised)
    for b, h, paths, truth in each(samples, realised):
        assert found[b, h] == pytest.approx((mean(paths) - truth) ** 2, abs=1e-9)


def test_crps_is_the_fair_estimator(samples, realised):
    found = metrics.crps(samples, realised)
    for b, h, paths, truth in each(samples, realised):
        distance = mean(abs(x - truth) for x in paths)
        spread = mean(abs(x - y) for x, y in permutations(paths, 2))
        assert found[b, h] == pytest.approx(distance - spread / 2, abs=1e-9)


def test_crps_of_a_point_forecast_is_its_absolute_error(realised):
    point = np.repeat(np.full((B, 1, H), 0.013), 2, axis=1)
    np.testing.assert_allclose(metrics.crps(point, realised), np.abs(0.013 - realised), atol=1e-12)


def test_crps_of_one_path_is_refused(samples, realised):
    with pytest.raises(ValueError, match="CRPS needs at least 2 sample paths per origin, found 1"):
        metrics.crps(samples[:, :1], realised)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_are_linear_quantiles_and_cover_what_lies_between_them(samples, realised, share):
    low, high = metrics.central_interval(samples, share)
    inside = metrics.covered(low, high, realised)
    for b, h, paths, truth in each(samples, realised):
        ordered = sorted(paths)

        def quantile(q: float, ordered: list[float] = ordered) -> float:
            at = q * (S - 1)
            below = min(int(at), S - 2)
            return ordered[below] + (at - below) * (ordered[below + 1] - ordered[below])

        assert low[b, h] == pytest.approx(quantile((1 - share) / 2), abs=1e-9)
        assert high[b, h] == pytest.approx(quantile((1 + share) / 2), abs=1e-9)
        assert inside[b, h] == (quantile((1 - share) / 2) <= truth <= quantile((1 + share) / 2))
    assert 0 < inside.mean() < 1


def test_direction_counts_hits_and_leaves_out_what_does_not_move():
    ends = np.array([0.01, 0.01, -0.01, -0.01, 0.0, 0.01])
    truth = np.array([0.02, -0.02, -0.02, 0.02, 0.02, 0.0])
    samples = np.repeat(ends[:, None, None], S, axis=1) * np.array([-5.0, 1.0])
    found = metrics.direction_hit(samples, np.stack([-truth, truth], axis=1))
    np.testing.assert_array_equal(found, [1, 0, 1, 0, np.nan, np.nan])


def test_direction_follows_the_median_and_not_the_mean():
    samples = np.array([[[0.01], [0.01], [-0.5]]])
    assert metrics.direction_hit(samples, np.array([[0.02]])) == [1.0]


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
