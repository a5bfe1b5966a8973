"""Conformal scaling: what it promises, what it moves and what it leaves, and its way from validation to serving."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from kronos_model.calibration import LEVELS, Calibration, fewest_origins
from kronos_model.config import PRESETS
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.calibrating import fit_calibration, fit_unless_harmful
from kronos_model.evaluation.competitors import LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.metrics import crps
from kronos_model.evaluation.walk_forward import walk_forward
from kronos_model.files import model_digest
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.sampling import SamplingConfig
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import build, make_candles

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


def test_a_calibration_that_lowers_the_crps_of_held_out_times_is_fitted_on_all_of_them():
    samples, realised = draws(1, spread=0.4)
    times = np.repeat(np.arange(N // 2), 2)  # two series
    fitted = fit_unless_harmful(samples, realised, times, SAMPLING)
    assert fitted.calibration == Calibration.fit(samples, realised, SAMPLING)
    assert re.fullmatch(
        r"it moves the CRPS of held-out validation origins from (.+) to (.+) bps", fitted.reason
    )


def test_a_calibration_that_raises_the_crps_of_held_out_times_is_dropped_and_told_so():
    samples, realised = draws(1, spread=1)
    times = np.repeat(np.arange(N // 2), 2)
    realised[times % 2 == 0] *= 5  # what is learnt there does not hold between
    fitted = fit_unless_harmful(samples, realised, times, SAMPLING)
    assert fitted.calibration is None
    told = re.fullmatch(
        r"it would raise the CRPS of held-out validation origins from (.+) to (.+) bps", fitted.reason
    )
    assert told is not None
    trial = Calibration.fit(samples[times % 2 == 0], realised[times % 2 == 0], SAMPLING)
    held_out, truth = samples[times % 2 == 1], realised[times % 2 == 1]
    for paths, value in zip((held_out, trial.scale(held_out)), told.groups(), strict=True):
        assert float(value) == pytest.approx(1e4 * crps(paths, truth).mean(), abs=0.01)


def test_a_raise_within_one_per_cent_is_no_harm(monkeypatch):
    samples, realised = draws(5, spread=1)
    times = np.arange(N)
    trial = Calibration.fit(samples[::2], realised[::2], SAMPLING)
    raw, scaled = (
        crps(paths, realised[1::2]).mean() for paths in (samples[1::2], trial.scale(samples[1::2]))
    )
    for allowed, kept in ((scaled / raw - 1 + 1e-6, True), (scaled / raw - 1 - 1e-6, False)):
        monkeypatch.setattr("kronos_model.evaluation.calibrating._WORSE", allowed)
        assert (fit_unless_harmful(samples, realised, times, SAMPLING).calibration is not None) == kept


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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    candles = {"um:DOGEUSDT": make_candles(700, seed=1), "um:BTCUSDT": make_candles(700, seed=2)}
    built = build(candles, DatasetConfig(lookback=24, horizon=4), tmp_path_factory.mktemp("datasets"))
    return WindowDataset.open(built.path)


CONFIG = EvaluationConfig(origins=5, samples=8, calibration_origins=10)


def competitor(folder, dataset: WindowDataset, **changes) -> ModelCompetitor:
    pair = scratch_pair(PRESETS["tiny"], folder, seed=3)
    forecaster = Forecaster.load(pair.tokenizer, pair.predictor, normaliser=dataset.normaliser)
    return ModelCompetitor(name="model", forecaster=forecaster, config=replace(CONFIG, **changes), seed=5)


def test_a_model_is_calibrated_on_its_own_validation_forecasts_and_scored_before_and_after(dataset, tmp_path):
    model = competitor(tmp_path, dataset)
    calibration = fit_calibration(dataset, model).calibration
    assert calibration is not None
    assert (calibration.origins, calibration.samples, len(calibration.factors[0])) == (20, 8, 4)
    digest = model_digest(tmp_path / "predictor")
    calibration.save(tmp_path / "predictor")
    assert model_digest(tmp_path / "predictor") != digest
    model = competitor(tmp_path, dataset)
    assert model.postprocess.spread_alone.factors == calibration.factors
    scores = walk_forward(dataset, [model, LastValue()], CONFIG)
    assert scores.models == ("model", "model_raw", "last_value")
    ratio = scores.width[0, 0] / scores.width[0, 1]  # of the 50 % interval: between the factors around it
    low, high = np.min(calibration.factors, axis=0), np.max(calibration.factors, axis=0)
    assert ((0.99 * low <= ratio) & (ratio <= 1.01 * high)).all()
    np.testing.assert_allclose(scores.median[0], scores.median[1], atol=1e-6)
    before = walk_forward(dataset, [competitor(tmp_path, dataset, calibrate=False)], CONFIG)
    np.testing.assert_array_equal(before.crps[0], scores.crps[1])


def test_the_calibration_is_fitted_on_validation_windows_alone(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("kronos_model.calibration._WIDEST", 1e9)  # untrained weights are far off
    model = competitor(tmp_path, dataset)
    test_from = int(dataset.start_ms("test").min())
    assert fit_calibration(dataset.with_other_future(test_from), model) == fit_calibration(dataset, model)
    validation_from = int(dataset.start_ms("validation").min())
    assert fit_calibration(dataset.with_other_future(validation_from), model) != fit_calibration(
        dataset, model
    )


def test_a_short_validation_range_gives_no_calibration_and_says_why(dataset, tmp_path):
    fitted = fit_calibration(dataset, competitor(tmp_path, dataset, calibration_origins=8))
    assert fitted.calibration is None
    assert fitted.reason == "every other origin time of the validation range has 8 origins, and 9 are needed"


def test_a_forecaster_serves_calibrated_paths_for_the_settings_they_were_fitted_to(dataset, tmp_path):
    scratch_pair(PRESETS["tiny"], tmp_path, seed=3)
    calibration = made((2.0,) * 4, (1.5,) * 4)
    calibration.save(tmp_path / "predictor")
    forecaster = competitor(tmp_path, dataset).forecaster
    windows = dataset.batch("test", [0, 1])
    asked = (
        windows.features[:, :24].numpy(),
        windows.open_time[:, :24],
        windows.open_time[:, 24:],
        windows.series,
    )
    settings = SamplingConfig(samples=8)
    raw = forecaster.paths(*asked, config=settings, seed=1, postprocessed=False).paths
    served = forecaster.paths(*asked, config=settings, seed=1).paths
    assert forecaster.postprocess is not None
    np.testing.assert_array_equal(served, forecaster.postprocess.alone(raw, asked[0][:, -1, 3]))
    assert (served != raw).any()
    cool = replace(settings, temperature=0.6)
    np.testing.assert_array_equal(
        forecaster.paths(*asked, config=cool, seed=1).paths,
        forecaster.paths(*asked, config=cool, seed=1, postprocessed=False).paths,
    )
