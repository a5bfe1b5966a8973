"""Conformal scaling: what it promises, what it moves and what it leaves, and its way from validation to serving."""

import json
import math

import numpy as np
import pytest

from kronos_model.calibration import LEVELS, Calibration, fewest_origins
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.metrics import crps
from kronos_model.sampling import SamplingConfig

N, S, H = 60, 25, 3
SAMPLING = SamplingConfig(samples=S)


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


def made(*factors: tuple[float, ...], **changes) -> Calibration:
    """These factors per level and step."""
    usual = {"origins": 9, "samples": S, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return Calibration(**{"levels": LEVELS[: len(factors)], "factors": factors, **usual, **changes})


def prices(returns: np.ndarray, last: float = 100.0) -> np.ndarray:
    close = last * np.exp(returns)
    bars = [
        close * 0.999,
        close * 1.003,
        close * 0.998,
        close,
        np.full_like(close, 5),
        np.full_like(close, 7),
    ]
    return np.stack(bars, axis=-1).astype(np.float32)


def covers(samples: np.ndarray, realised: np.ndarray, share: float = 0.9) -> np.ndarray:
    low, high = np.quantile(samples, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return ((low <= realised) & (realised <= high)).mean(axis=0)


@pytest.mark.parametrize("level", LEVELS)
def test_each_factor_is_the_smallest_that_covers_enough_of_the_steps_around_it(level):
    horizon = 13  # a window reaches two steps to either side
    samples, realised = draws(1, spread=0.4, horizon=horizon)
    row = Calibration.fit(samples, realised, SAMPLING).factors[LEVELS.index(level)]
    for h in range(horizon):
        needed = []
        for step in range(max(0, h - 2), min(horizon, h + 3)):
            for n in range(N):
                low, middle, high = np.quantile(samples[n, :, step], [(1 - level) / 2, 0.5, (1 + level) / 2])
                y = realised[n, step]
                needed.append((y - middle) / (high - middle) if y > middle else (middle - y) / (middle - low))
        wanted = math.ceil(round(level * (N + 1) * len(needed) / N, 6))
        assert row[h] == pytest.approx(max(0.1, sorted(needed)[wanted - 1]), abs=1e-12)


def test_one_level_and_one_step_are_plain_split_conformal_prediction():
    samples, realised = draws(1, spread=0.4, horizon=1)
    found = Calibration.fit(samples, realised, SAMPLING, levels=(0.9,))
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
        calibration = Calibration.fit(*draws(seed, **planted), SAMPLING)
        samples, realised = draws(1000 + seed, count=200, **planted)
        scaled = calibration.apply(prices(samples), np.full(200, 100.0))
        returns = np.log(scaled[..., 3].astype(np.float64) / 100)
        shares.append([covers(returns, realised, level).mean() for level in LEVELS])
        raw.append([covers(samples, realised, level).mean() for level in LEVELS])
    off = np.abs(np.mean(shares, axis=0) - LEVELS)
    assert off.max() < 0.025
    assert planted == {"spread": 1.0} or (off < np.abs(np.mean(raw, axis=0) - LEVELS)).all()


@pytest.mark.parametrize("planted", [{"spread": 0.4}, {"spread": 2.5}, {"spread": 0.5, "tails": 2.5}])
def test_a_fan_that_is_off_forecasts_better_on_new_origins(planted):
    samples, realised = draws(2, count=400, **planted)
    scaled = Calibration.fit(*draws(1, count=100, **planted), SAMPLING).scale(samples)
    assert crps(scaled, realised).mean() < 0.97 * crps(samples, realised).mean()


def test_levels_cost_no_sharpness_in_the_centre_where_only_the_tails_were_too_thin():
    planted = {"spread": 0.9, "tails": 2.0}
    samples, realised = draws(2, count=2000, **planted)
    several, one = (
        Calibration.fit(*draws(1, count=400, **planted), SAMPLING, levels=levels)
        for levels in (LEVELS, (0.9,))
    )
    assert crps(several.scale(samples), realised).mean() < crps(one.scale(samples), realised).mean()
    assert covers(one.scale(samples), realised, 0.5).mean() > 0.56  # as wide as the tails need it, everywhere


def test_a_fan_that_is_right_stays_nearly_as_it_is():
    samples, realised = draws(2, count=400, paths=200)  # few paths alone make a band too narrow
    calibration = Calibration.fit(*draws(1, count=400, paths=200), SAMPLING)
    assert np.abs(np.array(calibration.factors) - 1).max() < 0.12
    assert crps(calibration.scale(samples), realised).mean() == pytest.approx(
        crps(samples, realised).mean(), rel=0.01
    )


def test_pooled_factors_jump_less_from_step_to_step_than_those_of_each_step_alone():
    samples, realised = draws(1, spread=0.5, horizon=24)
    pooled = Calibration.fit(samples, realised, SAMPLING).factors[-1]
    alone = [
        Calibration.fit(samples[:, :, h : h + 1], realised[:, h : h + 1], SAMPLING).factors[-1][0]
        for h in range(24)
    ]
    assert np.abs(np.diff(pooled)).mean() < 0.4 * np.abs(np.diff(alone)).mean()


def test_a_bar_moves_as_a_whole_and_the_median_and_the_volumes_stay():
    samples = draws(1, spread=0.4)[0]
    paths, last = prices(samples), np.full(N, 100.0)
    row = (1.0, 2.0, 0.5)
    scaled = made(row, row, row).apply(paths, last)
    np.testing.assert_array_equal(scaled[..., 4:], paths[..., 4:])
    before, after = (np.log(one[..., 3].astype(np.float64) / 100) for one in (paths, scaled))
    np.testing.assert_allclose(np.median(after, axis=1), np.median(before, axis=1), atol=1e-6)
    spread = after.std(axis=1) / before.std(axis=1)
    np.testing.assert_allclose(spread, np.tile(row, (N, 1)), rtol=1e-4)
    for column in (0, 1, 2):
        np.testing.assert_allclose(
            scaled[..., column] / scaled[..., 3], paths[..., column] / paths[..., 3], rtol=1e-6
        )


@pytest.mark.parametrize("count", [1, 2, 16, 25])
def test_each_path_moves_by_the_factor_of_its_own_rank(count):
    factors = np.array([0.5, 1.0, 3.0])
    returns = np.random.default_rng(1).normal(0, 0.01, (4, count, 1))
    scaled = made(*((factor,) for factor in factors)).scale(returns)
    for before, after in zip(returns[..., 0], scaled[..., 0], strict=True):
        for value, moved in zip(before, after, strict=True):
            level = abs(2 * (before < value).sum() / max(count - 1, 1) - 1)
            middle = np.median(before)
            assert moved == pytest.approx(middle + np.interp(level, LEVELS, factors) * (value - middle))


@pytest.mark.parametrize("count", [2, 16, 25])
@pytest.mark.parametrize("factors", [(3.0, 0.2, 0.1), (0.1, 5.0, 0.3), (0.5, 1.0, 2.0)])
def test_the_order_of_paths_and_quantiles_and_the_bars_stay_consistent_even_with_factors_that_fall_outward(
    factors, count
):
    calibration = made(*((factor,) * H for factor in factors))
    returns = np.random.default_rng(1).normal(0, 0.01, (40, count, H)).round(3)  # with ties
    scaled = calibration.scale(returns)
    order = np.argsort(returns, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(scaled, order, axis=1), axis=1) >= 0).all()
    np.testing.assert_allclose(np.median(scaled, axis=1), np.median(returns, axis=1), atol=0.0005)
    bars = calibration.apply(prices(returns), np.full(40, 100.0))
    assert (bars[..., 1] >= bars[..., [0, 3]].max(axis=-1)).all()
    assert (bars[..., 2] <= bars[..., [0, 3]].min(axis=-1)).all()
    assert (bars[..., :4] > 0).all()


def test_steps_beyond_the_last_factor_use_it_and_fewer_steps_use_the_first_ones():
    one = made((1.0, 2.0), (1.0, 3.0))
    paths = prices(np.random.default_rng(2).normal(0, 0.01, (4, S, 5)))
    last = np.full(4, 100.0)
    long = made((1.0, 2.0, 2.0, 2.0, 2.0), (1.0, 3.0, 3.0, 3.0, 3.0)).apply(paths, last)
    np.testing.assert_array_equal(one.apply(paths, last), long)
    np.testing.assert_array_equal(one.apply(paths[:, :, :1], last), long[:, :, :1])


def test_a_fan_without_width_gets_the_widest_factor_and_stays_finite():
    found = Calibration.fit(np.zeros((N, S, H)), np.full((N, H), 0.01), SAMPLING)
    assert found.factors == ((10.0,) * H,) * 3
    wild = prices(np.random.default_rng(2).normal(0, 6, (4, S, H)))
    assert np.isfinite(found.apply(wild, np.full(4, 100.0))).all()


def test_too_few_origins_are_refused_and_told():
    samples, realised = draws(1, spread=1, count=fewest_origins(0.9) - 1)
    with pytest.raises(DataError, match="needs at least 9 origins, found 8; widen the validation range"):
        Calibration.fit(samples, realised, SAMPLING)
    assert Calibration.fit(*draws(1, spread=1, count=9), SAMPLING).origins == 9


def test_a_calibration_is_the_same_after_a_round_trip_and_a_damaged_one_is_named(tmp_path):
    calibration = Calibration.fit(*draws(1, spread=0.4), SAMPLING)
    assert Calibration.load(tmp_path) is None
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    path = tmp_path / "calibration.json"
    old = {"version": 1, "level": 0.9, "factors": [1.0, 1.2], "origins": 9, "samples": 8}
    old |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for damaged in (
        {"version": 2},
        {**json.loads(path.read_text()), "factors": []},
        {**json.loads(path.read_text()), "factors": [[1.0], [1.0, 2.0], [1.0]]},
        {**json.loads(path.read_text()), "levels": [0.9, 0.8, 0.5]},
        old,
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ModelError, match="expected a calibration of version 2"):
            Calibration.load(tmp_path)
    with pytest.raises(ModelError, match=r"found something else \(version 1\); calibrate again or delete it"):
        Calibration.load(tmp_path)
