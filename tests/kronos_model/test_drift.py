"""Drift: what is large and unusual is found, what training itself shows is not."""

from itertools import pairwise

import numpy as np
import pytest

from kronos_model.evaluation.drift import Drift, measure_drift


def _measured(then: np.ndarray, now: np.ndarray) -> Drift:
    drift = measure_drift(then, now)
    assert drift is not None
    return drift


def test_the_index_and_the_distance_equal_naive_loops() -> None:
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=2_000), rng.normal(0.3, 1.5, 500)
    edges = [-np.inf, *np.quantile(then, np.arange(1, 10) / 10), np.inf]
    index = 0.0
    for low, high in pairwise(edges):
        expected = (sum(low <= value < high for value in then) + 0.5) / (2_000 + 5)
        found = (sum(low <= value < high for value in now) + 0.5) / (500 + 5)
        index += (found - expected) * np.log(found / expected)
    drift = _measured(then, now)
    assert drift.psi == pytest.approx(index, rel=1e-12)
    gaps = [abs((then <= value).mean() - (now <= value).mean()) for value in np.concatenate([then, now])]
    assert drift.ks == pytest.approx(max(gaps), abs=1e-12)


def test_the_same_market_is_as_usual_and_the_index_near_nothing() -> None:
    rng = np.random.default_rng(1)
    drift = _measured(rng.standard_t(4, 20_000), rng.standard_t(4, 720))
    assert drift.psi < 0.05
    assert drift.spread == pytest.approx(1, abs=0.15)
    assert not drift.drifted


def test_a_market_three_times_as_wild_has_drifted() -> None:
    rng = np.random.default_rng(2)
    drift = _measured(rng.normal(size=20_000), 3 * rng.normal(size=720))
    assert drift.drifted
    assert drift.psi > 0.25 > drift.ks > 0.1
    assert drift.spread == pytest.approx(3, rel=0.15)


def test_a_wild_month_among_a_training_range_of_wild_and_calm_months_is_no_drift() -> None:
    rng = np.random.default_rng(3)
    regimes = np.repeat(np.tile([0.5, 2.0], 20), 720)
    drift = _measured(regimes * rng.normal(size=len(regimes)), 2 * rng.normal(size=720))
    assert drift.usual is not None
    assert drift.psi > 0.2
    assert not drift.drifted


def test_a_volume_that_has_grown_tenfold_shows_as_its_median() -> None:
    rng = np.random.default_rng(4)
    drift = _measured(rng.normal(10, 1, 20_000), rng.normal(10, 1, 720) + np.log(10))
    assert drift.drifted
    assert np.exp(drift.shift) == pytest.approx(10, rel=0.15)


def test_little_data_says_nothing_and_a_short_training_range_has_no_usual() -> None:
    rng = np.random.default_rng(5)
    assert measure_drift(rng.normal(size=5_000), rng.normal(size=99)) is None
    assert measure_drift(rng.normal(size=99), rng.normal(size=5_000)) is None
    assert _measured(rng.normal(size=700), rng.normal(size=100)).usual is None
    assert _measured(rng.normal(size=500), rng.normal(size=720)).usual is None


def test_values_that_are_mostly_equal_do_not_break_it() -> None:
    drift = _measured(np.zeros(1_000), np.concatenate([np.zeros(150), np.ones(50)]))
    assert np.isfinite(drift.psi)
    assert drift.ks == pytest.approx(0.25)
