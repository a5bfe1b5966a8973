"""Resampling over time, Diebold and Mariano's test and Holm's correction against loops, libraries and chance."""

import math
from dataclasses import replace

import numpy as np
import pytest
from dieboldmariano import dm_test

from kronos_model.evaluation.diagnostics import loss_tests, skill_by_step
from kronos_model.evaluation.intervals import (
    Resampler,
    block_length,
    diebold_mariano,
    holm,
    per_time,
)
from kronos_model.references import stretches
from tests.support.scores import HOUR_MS, planted_scores


def losses(seed: int, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(1, 0.3, count)) + np.convolve(rng.normal(0, 0.2, count + 3), np.ones(4), "valid")


@pytest.mark.parametrize("overlaps", [1, 2, 4, 7])
def test_diebold_mariano_equals_the_public_one(overlaps):
    ours, theirs = losses(1), losses(2)
    expected = dm_test(
        [0.0] * 60, ours.tolist(), theirs.tolist(), loss=lambda _, p: p, h=overlaps, variance_estimator="acf"
    )
    found = diebold_mariano(ours - theirs, overlaps)
    assert (found.statistic, found.p_value) == pytest.approx(expected, abs=1e-9)


def test_diebold_mariano_equals_its_formula_as_loops():
    d, lags = (losses(3) - losses(4)).tolist(), 3
    n, centre = len(d), sum(d) / len(d)
    total = 0.0
    for lag in range(lags):
        covariance = sum((d[t] - centre) * (d[t - lag] - centre) for t in range(lag, n)) / n
        total += covariance * (1 if lag == 0 else 2)
    harvey = math.sqrt((n + 1 - 2 * lags + lags * (lags - 1) / n) / n)
    found = diebold_mariano(np.array(d), lags)
    assert found.statistic == pytest.approx(harvey * centre / math.sqrt(total / n), abs=1e-9)


def test_a_variance_that_is_not_positive_falls_back_to_bartletts_weights():
    alternating = np.array([1.0, -1.0] * 20) + 0.01 * np.arange(40)
    found = diebold_mariano(alternating, 2)  # the first autocovariance is almost minus the variance
    assert math.isfinite(found.statistic)
    assert 0 < found.p_value <= 1


def test_equal_losses_prove_nothing_and_a_constant_difference_everything():
    assert diebold_mariano(np.zeros(10), 3).p_value == 1.0
    assert diebold_mariano(np.full(10, -0.25), 3).p_value == 0.0
    with pytest.raises(ValueError, match="at least 2 origin times, found 1"):
        diebold_mariano(np.ones(1), 1)


def test_diebold_mariano_finds_nothing_in_noise_more_often_than_it_promises():
    rng, found = np.random.default_rng(5), 0
    for _ in range(400):
        noise = np.convolve(rng.normal(size=203), np.ones(4), "valid")
        found += diebold_mariano(noise, 4).p_value < 0.05
    assert found / 400 < 0.09


def test_holm_corrects_in_order_and_never_lowers():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_stretches_run_on_from_every_restart():
    start, offset = stretches(np.array([[False, False, True, False]]), np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert start.tolist() == [[0.1, 0.1, 0.3, 0.3]]
    assert offset.tolist() == [[0, 1, 0, 1]]


def test_values_are_summed_over_the_series_of_each_time():
    sums, counts = per_time(np.array([5, 3, 5]), np.array([[1.0], [2.0], [4.0]]))
    assert sums.tolist() == [[2.0], [5.0]]
    assert counts.tolist() == [1.0, 2.0]


def resampled(scores):
    return Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=0.9, draws=200, seed=3)


def test_the_interval_of_a_mean_equals_a_loop_over_the_draws():
    scores = planted_scores({"a": losses(1)}, stride_hours=1, horizon=3, series=2)
    found = resampled(scores)
    values = scores.crps[0, :, 0]
    low, high = found.mean(values, 0.9)
    times = sorted(set(scores.origin_ms.tolist()))
    means = []
    for weights in found.weights.astype(int).tolist():
        drawn = [t for t, often in zip(times, weights, strict=True) for _ in range(often)]
        assert len(drawn) == len(times)
        chosen = [v for t in drawn for v in values[scores.origin_ms == t]]
        means.append(sum(chosen) / len(chosen))
    centre = float(values.mean())
    assert low == pytest.approx(centre + (np.quantile(means, 0.05) - centre) * found.factor, abs=1e-9)
    assert high == pytest.approx(centre + (np.quantile(means, 0.95) - centre) * found.factor, abs=1e-9)


def test_the_interval_of_overlapping_forecasts_is_that_of_a_naive_bootstrap_widened_as_described():
    """Stretches of six in the mean, twice a horizon, drawn step by step with other random numbers."""
    block, length, draws = 3, 6, 4_000
    scores = planted_scores(
        {"a": np.convolve(losses(1, 200), np.ones(block), "valid")}, stride_hours=1, horizon=block
    )
    values, rng, means = scores.crps[0, :, 0], np.random.default_rng(11), []
    for _ in range(draws):
        at, total = 0, 0.0
        for jump, place in zip(
            rng.random(len(values)) < 1 / length, rng.integers(len(values), size=len(values)), strict=True
        ):
            at = int(place) if jump or total == 0.0 else (at + 1) % len(values)
            total += values[at]
        means.append(total / len(values))
    # Of the variance of a mean of three overlapping forecasts, stretches show less the farther two lie apart.
    parts = {lag: 1 - abs(lag) / block for lag in range(1 - block, block)}
    shown = sum(part * (1 - 1 / length) ** abs(lag) for lag, part in parts.items()) / sum(parts.values())
    pieces, z = len(values) / length, 1.6448536269514722
    factor = np.sqrt(pieces / (pieces - 1) / shown) * (1 + (z**2 + 1) / (4 * (pieces - 1)))
    found = Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=0.9, draws=draws, seed=3)
    low, high = found.mean(values, 0.9)
    centre, width = values.mean(), (np.quantile(means, 0.95) - np.quantile(means, 0.05)) * factor
    assert high - low == pytest.approx(width, rel=0.05)
    assert (low, high) == pytest.approx(
        (
            centre + (np.quantile(means, 0.05) - centre) * factor,
            centre + (np.quantile(means, 0.95) - centre) * factor,
        ),
        abs=0.04 * width,
    )


def test_stretches_of_overlapping_forecasts_are_twice_a_horizon_long():
    apart = resampled(planted_scores({"a": losses(1, 600)}, stride_hours=24, horizon=4))
    overlapping = resampled(planted_scores({"a": losses(1, 600)}, stride_hours=1, horizon=12))
    for found, length in ((apart, 1), (overlapping, 24)):
        drawn = found.weights
        # A stretch of mean length L makes neighbours appear together: their counts correlate.
        together = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]
        assert together == pytest.approx(1 - 1 / length, abs=0.05)


def test_the_interval_of_a_mean_holds_its_promise_for_overlapping_forecasts():
    rng, misses, trials = np.random.default_rng(6), 0, 300
    for _ in range(trials):
        noise = np.convolve(rng.normal(size=255), np.ones(6), "valid")
        scores = planted_scores({"a": noise}, stride_hours=1, horizon=6)
        low, high = Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=0.9, draws=200).mean(
            noise, 0.9
        )
        misses += not low < 0 < high
    assert misses / trials == pytest.approx(0.1, abs=0.05)


def test_few_origins_have_an_interval_without_ends():
    scores = planted_scores({"a": losses(1, 3)}, stride_hours=1, horizon=12)
    low, high = resampled(scores).mean(scores.crps[0, :, 0], 0.9)
    assert (low, high) == (-math.inf, math.inf)


def test_skill_by_step_is_one_minus_the_ratio_inside_its_interval():
    scores = planted_scores({"a": losses(1) * 0.8, "last_value": losses(1)})
    found = skill_by_step(scores, "a")
    np.testing.assert_allclose(found.skill, 0.2, atol=1e-12)
    np.testing.assert_allclose([found.low, found.high], 0.2, atol=1e-9)  # the same ratio at every origin
    other = skill_by_step(planted_scores({"a": losses(3), "last_value": losses(1)}), "a")
    assert (other.low < other.skill).all()
    assert (other.skill < other.high).all()


def test_tests_of_many_symbols_and_steps_are_corrected_together():
    rng = np.random.default_rng(8)
    base = np.abs(rng.normal(1, 0.1, 120))
    worse = base + rng.normal(0, 0.02, 120)
    worse[1::2] += 0.02  # the second symbol alone
    rows = loss_tests(planted_scores({"a": worse, "b": base}, series=2), "a", "b")
    assert [(row.series, row.step) for row in rows] == [
        (name, step) for name in ("um:COIN0USDT", "um:COIN1USDT") for step in (None, 0, 1, 2, 3)
    ]
    assert holm([row.p_value for row in rows]) == [row.p_holm for row in rows]
    assert all(row.p_holm > 0.05 for row in rows[:5])
    assert all(row.p_holm < 0.01 and row.difference > 0 for row in rows[5:])
    assert len(loss_tests(planted_scores({"a": worse, "b": base}, series=2), "a", "b", by_step=False)) == 2


def test_a_block_covers_all_origins_of_all_series_within_one_horizon():
    hours = np.array([0, 0, 1, 1, 2, 2, 9, 9], np.int64) * HOUR_MS
    assert block_length(hours, 2 * HOUR_MS) == 4
    assert block_length(hours, 3 * HOUR_MS) == 6
    assert block_length(hours[::2], HOUR_MS) == 1


def test_each_steps_test_respects_the_overlap_of_forecasts_up_to_that_step_alone():
    scores = planted_scores({"a": losses(1), "b": losses(2)}, stride_hours=1, horizon=4)
    rows = loss_tests(scores, "a", "b")
    for row, overlaps in zip(rows, (4, 1, 2, 3, 4), strict=True):
        expected = diebold_mariano(losses(1) - losses(2), overlaps)
        assert (row.statistic, row.p_value) == pytest.approx((expected.statistic, expected.p_value), rel=1e-9)
    assert len({round(row.statistic, 9) for row in rows}) == 4


def test_a_series_with_one_origin_is_not_tested_and_the_others_are():
    crps = {name: np.append(losses(seed, 10), 1.0) for seed, name in ((1, "a"), (2, "b"))}
    scores = planted_scores(crps)
    scores.series_index[-1] = 1
    rows = loss_tests(replace(scores, series=("um:MANY", "um:ONE")), "a", "b", by_step=False)
    assert [row.series for row in rows] == ["um:MANY"]


@pytest.mark.parametrize(("count", "known"), [(9, False), (12, False), (13, True)])
def test_an_interval_takes_more_than_two_stretches(count, known):
    """Forecasts of three hours from every hour: a stretch is six origins long."""
    hours = np.arange(count) * HOUR_MS
    found = Resampler.of(hours, 3 * HOUR_MS, confidence=0.9, draws=200).mean(losses(1, count), 0.9)
    assert bool(np.isfinite(found).all()) == known
    assert known or tuple(map(float, found)) == (-math.inf, math.inf)


def test_forecasts_that_all_overlap_are_tested_with_every_lag_that_there_is():
    difference = losses(1, 10) - losses(2, 10)
    found = diebold_mariano(difference, 50)
    assert found == diebold_mariano(difference, 9)
    assert found.statistic != 0
