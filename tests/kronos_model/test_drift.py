"""Drift: what is large and unusual is found, what training itself shows is not."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.signal import lfilter

from kronos_model.evaluation.drift import DRIFT_CANDLES, Drift, corrected, measure_drift


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
    assert _measured(rng.normal(size=1_899), rng.normal(size=100)).usual is None
    assert _measured(rng.normal(size=1_900), rng.normal(size=100)).usual is not None
    assert _measured(rng.normal(size=500), rng.normal(size=720)).usual is None


def test_values_that_are_mostly_equal_do_not_break_it() -> None:
    drift = _measured(np.zeros(1_000), np.concatenate([np.zeros(150), np.ones(50)]))
    assert np.isfinite(drift.psi)
    assert drift.ks == pytest.approx(0.25)


def _volumes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Stationary ln volumes of 4h candles whose level wanders for weeks, with a rhythm of days and their own noise."""
    memory = 0.99
    level = lfilter([1], [1, -memory], rng.normal(0, np.sqrt(1 - memory**2), count + 1_000))[1_000:]
    return 15 + level + 0.3 * np.sin(np.arange(count) * 2 * np.pi / 6) + rng.normal(0, 0.5, count)


def test_without_many_stretches_nothing_ever_drifts_however_large_the_index() -> None:
    """Three years of 4h candles are nine stretches of 720: too few to know what is usual."""
    large = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        series = _volumes(rng, 9 * DRIFT_CANDLES + 1_500)
        for then in (series[: 9 * DRIFT_CANDLES], series[: 4 * DRIFT_CANDLES]):
            drift = _measured(then, series[-DRIFT_CANDLES // 2 :] + rng.normal(0, 0.7))
            large += drift.psi >= 0.25
            unusual = drift.p_value is not None and drift.p_value <= 0.05
            assert drift.drifted == (unusual and drift.psi > max(0.25, drift.usual or 0))
            drift = _measured(then, series[-DRIFT_CANDLES:] + rng.normal(0, 0.7))
            assert drift.usual is None
            assert not drift.drifted
    assert large > 10


def test_a_stationary_series_with_a_yardstick_seldom_drifts_and_one_that_moves_does() -> None:
    alarms, found = 0, 0
    for seed in range(60):
        series = _volumes(np.random.default_rng(seed), 40 * DRIFT_CANDLES + 1_500)
        then, now = series[: 40 * DRIFT_CANDLES], series[-DRIFT_CANDLES:]
        alarms += _measured(then, now).drifted
        found += _measured(then, now + np.log(10)).drifted
    assert alarms <= 3  # 5 % are meant at most
    assert found >= 57  # ten times the volume, in a market whose own months differ by three times


def test_of_many_series_that_stay_as_they_were_hardly_ever_one_is_called_drifted() -> None:
    """Ten series at a time: without the correction some one of them is called drifted every third time."""
    alarms, uncorrected = 0, 0
    for seed in range(20):
        rng, drifts = np.random.default_rng(seed), []
        for _ in range(10):
            series = _volumes(rng, 20 * DRIFT_CANDLES + 1_500)
            drifts.append(_measured(series[: 20 * DRIFT_CANDLES], series[-DRIFT_CANDLES:]))
        uncorrected += any(one.drifted for one in drifts)
        alarms += any(one.drifted for one in corrected(drifts))
    assert alarms <= 2 < 4 <= uncorrected


def test_p_values_are_corrected_after_holm_and_those_without_a_yardstick_are_not_counted() -> None:
    rng = np.random.default_rng(7)
    drifts = [_measured(rng.normal(size=2_150), rng.normal(size=100)) for _ in range(3)]
    unknown = _measured(rng.normal(size=500), rng.normal(size=100))
    first, second, third = (float(one.p_value or 0) for one in drifts)
    low, middle, high = sorted((first, second, third))
    raised = sorted(float(one.p_value or 0) for one in corrected([*drifts, unknown]) if one.usual is not None)
    expected = [min(1, 3 * low), min(1, max(3 * low, 2 * middle)), min(1, max(3 * low, 2 * middle, high))]
    assert raised == pytest.approx(expected)
    assert corrected([unknown]) == [unknown]
    assert corrected([]) == []


def test_what_is_usual_is_the_index_of_a_stretch_against_the_rest_without_its_neighbours() -> None:
    rng = np.random.default_rng(6)
    then, now = rng.normal(size=2_150), rng.normal(size=100)
    edges = np.quantile(then, np.arange(1, 10) / 10)

    def shares(values: np.ndarray) -> np.ndarray:
        counts = np.array([(np.searchsorted(edges, values, side="right") == at).sum() for at in range(10)])
        return (counts + 0.5) / (counts + 0.5).sum()

    indices = []
    for at in range(21):
        first = 50 + 100 * at
        part = then[first : first + 100]
        near = np.r_[max(50, first - 100) : min(2_150, first + 200)]
        a, b = shares(np.delete(then, near)), shares(part)
        indices.append(float(((b - a) * np.log(b / a)).sum()))
    assert _measured(then, now).usual == pytest.approx(sorted(indices)[20], rel=1e-12)  # the 21st of 22 ranks
