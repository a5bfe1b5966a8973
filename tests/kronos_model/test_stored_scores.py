"""Scores of a stored forecast, from its paths and from its quantiles, against naive loops and the leaderboard."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kronos_model.context import Forecast
from kronos_model.evaluation.scores import LEVELS as SHARES
from kronos_model.evaluation.scoring import Truth, score_paths
from kronos_model.evaluation.stored_scores import score_closes, score_quantiles, score_stored, skill_interval
from tests.support.quantiles import path_quantiles

LEVELS = np.arange(1, 20) / 20


def _forecast(rng: np.random.Generator, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of closes (Q, H) around 100, and closes that came."""
    spread = 0.01 * np.sqrt(np.arange(1, steps + 1))
    samples = 100 * np.exp(rng.normal(0, spread, (400, steps)))
    return np.quantile(samples, LEVELS, axis=0), 100 * np.exp(rng.normal(0, spread))


@pytest.mark.parametrize("seed", range(3))
def test_the_crps_is_twice_the_mean_pinball_loss_and_the_last_value_scores_its_error(seed: int) -> None:
    quantiles, came = _forecast(np.random.default_rng(seed))
    found = score_quantiles(LEVELS, quantiles, came, 100.0)
    for step in range(6):
        truth, losses = np.log(came[step] / 100), []
        for level, value in zip(LEVELS, np.log(quantiles[:, step] / 100), strict=True):
            losses.append((level - (truth < value)) * (truth - value))
        assert found.crps[step] == pytest.approx(2 * sum(losses) / len(losses), abs=1e-12)
        assert found.last_value[step] == pytest.approx(abs(truth), abs=1e-12)
        inside = [
            quantiles[low, step] <= came[step] <= quantiles[high, step] for low, high in ((4, 14), (0, 18))
        ]
        assert [found.covered_50[step], found.covered_90[step]] == inside


def test_a_forecast_that_the_price_stays_scores_as_the_last_value_does() -> None:
    came = np.array([99.0, 101.5, 100.0])
    found = score_quantiles(LEVELS, np.full((19, 3), 100.0), came, 100.0)
    np.testing.assert_allclose(found.crps, found.last_value, atol=1e-15)


def test_a_step_without_a_candle_has_no_score_and_the_others_do() -> None:
    quantiles, came = _forecast(np.random.default_rng(0))
    whole = score_quantiles(LEVELS, quantiles, came, 100.0)
    came[2] = np.nan
    holed = score_quantiles(LEVELS, quantiles, came, 100.0)
    for name in ("crps", "last_value", "covered_50", "covered_90"):
        assert np.isnan(getattr(holed, name)).tolist() == [False, False, True, False, False, False]
        others = [0, 1, 3, 4, 5]
        np.testing.assert_array_equal(getattr(holed, name)[others], getattr(whole, name)[others])


def test_quantiles_without_the_ends_of_an_interval_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected the quantile 0.25 once, found the levels \[0.05, 0.5, 0.95\]"
    ):
        score_quantiles(np.array([0.05, 0.5, 0.95]), np.ones((3, 2)), np.ones(2), 1.0)


def test_the_interval_of_the_skill_is_that_of_a_plain_bootstrap_where_no_forecasts_overlap() -> None:
    rng = np.random.default_rng(4)
    last = rng.exponential(1.0, 300)
    crps = last * rng.uniform(0.5, 1.2, 300)
    found = skill_interval(np.arange(300) * 1000, crps, last, horizon_ms=1000)
    drawn = []
    for _ in range(3000):
        rows = rng.integers(0, 300, 300)
        drawn.append(1 - sum(crps[rows]) / sum(last[rows]))
    assert found == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.006)


def test_forecasts_that_overlap_are_worth_fewer_and_a_handful_is_worth_no_interval() -> None:
    rng = np.random.default_rng(5)
    shared = np.repeat(rng.exponential(1.0, 30), 10)  # ten forecasts an hour apart meet the same future
    crps, hours = 0.8 * shared + rng.normal(0.4, 0.3, 300), np.arange(300) * 1000
    low, high = skill_interval(hours, crps, shared, horizon_ms=10_000) or (0.0, 0.0)
    narrow = skill_interval(hours, crps, shared, horizon_ms=1000) or (0.0, 0.0)
    assert high - low > 1.5 * (narrow[1] - narrow[0])
    assert skill_interval(hours[:20], crps[:20], shared[:20], horizon_ms=10_000) is None


def _paths(seed: int, *, samples: int = 24, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Paths (S, H, 6) in prices as any model draws them, and closes that came."""
    rng = np.random.default_rng(seed)
    closes = 0.0677 * np.exp(rng.normal(0.001, 0.006, (samples, steps)).cumsum(axis=1))
    wick = np.exp(np.abs(rng.normal(0, 0.001, closes.shape)))
    bars = [closes, closes * wick, closes / wick, closes, np.ones_like(closes), closes]
    came = 0.0677 * np.exp(rng.normal(0, 0.006, steps).cumsum())
    return np.stack(bars, axis=-1).astype(np.float32), came.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_stored_paths_score_as_a_naive_loop_over_pairs_does(seed: int) -> None:
    paths, came = _paths(seed)
    closes = paths[..., 3]
    found = score_stored(LEVELS, np.ones((19, 6)), closes, came, 0.0677)
    assert found.estimator == "paths"
    for step in range(6):
        drawn = [float(np.log(np.float64(close) / 0.0677)) for close in closes[:, step]]
        truth = float(np.log(came[step] / 0.0677))
        miss = sum(abs(one - truth) for one in drawn) / 24
        apart = sum(abs(one - other) for one in drawn for other in drawn) / (24 * 23)
        assert found.crps[step] == pytest.approx(miss - apart / 2, rel=1e-6)
        assert found.last_value[step] == pytest.approx(abs(truth), rel=1e-12)
        for name, low, high in (("covered_50", 0.25, 0.75), ("covered_90", 0.05, 0.95)):
            ends = path_quantiles(drawn, [low, high])
            assert getattr(found, name)[step] == (ends[0] <= truth <= ends[1])


@pytest.mark.parametrize("member", [None, np.arange(24) % 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_forecast_scores_live_what_it_scores_in_the_leaderboard(
    seed: int, member: NDArray[np.int64] | None
) -> None:
    paths, came = _paths(seed)
    bars = np.repeat(came[:, None], 4, axis=1)[None]
    last = float(np.float32(0.0677))
    truth = Truth.of(np.array([last]), bars, series=["um:A"], origin_ms=np.array([0]))
    scored, _ = score_paths(Forecast(paths=paths[None], violation_rate=np.zeros(1), member=member), truth)
    unrounded = came * (1 + 2e-8)  # the lake holds more digits than a dataset
    found = score_closes(paths[..., 3], unrounded, last, member)
    np.testing.assert_allclose(found.crps, scored["crps"][0], rtol=1e-12)
    for name, share in (("covered_50", 0.5), ("covered_90", 0.9)):
        np.testing.assert_array_equal(getattr(found, name), scored["covered"][SHARES.index(share), 0])


def test_paths_without_a_candle_at_a_step_have_no_score_there() -> None:
    paths, came = _paths(0)
    whole = score_closes(paths[..., 3], came, 0.0677)
    came[2] = np.nan
    holed = score_closes(paths[..., 3], came, 0.0677)
    for name in ("crps", "last_value", "covered_50", "covered_90"):
        assert np.isnan(getattr(holed, name)).tolist() == [False, False, True, False, False, False]
        np.testing.assert_array_equal(np.delete(getattr(holed, name), 2), np.delete(getattr(whole, name), 2))


def test_one_path_has_no_spread_and_is_scored_as_the_point_that_its_quantiles_are() -> None:
    paths, came = _paths(0, samples=1)
    quantiles = np.repeat(paths[..., 3].astype(np.float64), 19, axis=0)
    found = score_stored(LEVELS, quantiles, paths[..., 3], came, 0.0677)
    assert found.estimator == score_stored(LEVELS, quantiles, None, came, 0.0677).estimator == "quantiles"
    np.testing.assert_allclose(found.crps, np.abs(np.log(came / quantiles[0])), rtol=1e-9)
