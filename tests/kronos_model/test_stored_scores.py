"""Scores of a stored forecast from its quantiles, against naive loops."""

import numpy as np
import pytest

from kronos_model.evaluation.stored_scores import score_quantiles, skill_interval

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
