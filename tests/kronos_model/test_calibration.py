"""Conformal scaling: what it promises, what it moves and what it leaves, and its way from validation to serving."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from kronos_model.calibration import Calibration, fewest_origins
from kronos_model.config import PRESETS
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.calibrating import fit_calibration
from kronos_model.evaluation.competitors import LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
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


def draws(seed: int, *, spread: float, count: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Paths `spread` times as wide as the truth they forecast."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.01 * spread, (count, S, H)), rng.normal(0, 0.01, (count, H))


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


def test_each_factor_is_the_smallest_that_covers_enough_of_the_origins_it_was_fitted_on():
    samples, realised = draws(1, spread=0.4)
    found = Calibration.fit(samples, realised, SAMPLING)
    wanted = math.ceil((N + 1) * 0.9)
    for h in range(H):
        needed = []
        for n in range(N):
            low, middle, high = np.quantile(samples[n, :, h], [0.05, 0.5, 0.95])
            y = realised[n, h]
            needed.append((y - middle) / (high - middle) if y > middle else (middle - y) / (middle - low))
        assert found.factors[h] == pytest.approx(sorted(needed)[wanted - 1], abs=1e-12)
        middle = np.median(samples[:, :, h], axis=1, keepdims=True)
        scaled = middle + found.factors[h] * (samples[:, :, h] - middle)
        covered = covers(scaled[:, :, None], realised[:, h : h + 1])[0]
        assert wanted - 1 <= round(covered * N) <= wanted  # the last one stands on the edge


@pytest.mark.parametrize("spread", [0.4, 1.0, 2.5])
def test_new_origins_are_covered_as_promised_however_narrow_or_wide_the_fan_was(spread):
    shares = []
    for seed in range(40):
        calibration = Calibration.fit(*draws(seed, spread=spread), SAMPLING)
        samples, realised = draws(1000 + seed, spread=spread, count=200)
        scaled = calibration.apply(prices(samples), np.full(200, 100.0))
        shares.append(covers(np.log(scaled[..., 3].astype(np.float64) / 100), realised).mean())
    assert np.mean(shares) == pytest.approx(0.905, abs=0.015)


def test_a_bar_moves_as_a_whole_and_the_median_and_the_volumes_stay():
    samples, realised = draws(1, spread=0.4)
    paths, last = prices(samples), np.full(N, 100.0)
    scaled = replace(Calibration.fit(samples, realised, SAMPLING), factors=(1.0, 2.0, 0.5)).apply(paths, last)
    np.testing.assert_array_equal(scaled[..., 4:], paths[..., 4:])
    before, after = (np.log(one[..., 3].astype(np.float64) / 100) for one in (paths, scaled))
    np.testing.assert_allclose(np.median(after, axis=1), np.median(before, axis=1), atol=1e-6)
    spread = after.std(axis=1) / before.std(axis=1)
    np.testing.assert_allclose(spread, np.tile([1.0, 2.0, 0.5], (N, 1)), rtol=1e-4)
    for column in (0, 1, 2):
        np.testing.assert_allclose(
            scaled[..., column] / scaled[..., 3], paths[..., column] / paths[..., 3], rtol=1e-6
        )
    assert (scaled[..., 1] >= scaled[..., [0, 3]].max(axis=-1)).all()
    assert (scaled[..., 2] <= scaled[..., [0, 3]].min(axis=-1)).all()


def test_steps_beyond_the_last_factor_use_it_and_fewer_steps_use_the_first_ones():
    one = Calibration(
        level=0.9, factors=(1.0, 2.0), origins=9, samples=S, temperature=1.0, top_k=0, top_p=1.0
    )
    paths = prices(np.random.default_rng(2).normal(0, 0.01, (4, S, 5)))
    last = np.full(4, 100.0)
    long = replace(one, factors=(1.0, 2.0, 2.0, 2.0, 2.0)).apply(paths, last)
    np.testing.assert_array_equal(one.apply(paths, last), long)
    np.testing.assert_array_equal(one.apply(paths[:, :, :1], last), long[:, :, :1])


def test_a_fan_without_width_gets_the_widest_factor_and_stays_finite():
    found = Calibration.fit(np.zeros((N, S, H)), np.full((N, H), 0.01), SAMPLING)
    assert found.factors == (10.0,) * H
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
    for damaged in (
        {"version": 2},
        {**json.loads(path.read_text()), "factors": []},
        {"version": 1, "level": 0.9},
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ModelError, match="expected a calibration of version 1"):
            Calibration.load(tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    candles = {"um:DOGEUSDT": make_candles(700, seed=1), "um:BTCUSDT": make_candles(700, seed=2)}
    built = build(candles, DatasetConfig(lookback=24, horizon=4), tmp_path_factory.mktemp("datasets"))
    return WindowDataset.open(built.path)


CONFIG = EvaluationConfig(origins=5, samples=8, calibration_origins=8)


def competitor(folder, dataset: WindowDataset, **changes) -> ModelCompetitor:
    pair = scratch_pair(PRESETS["tiny"], folder, seed=3)
    forecaster = Forecaster.load(pair.tokenizer, pair.predictor, normaliser=dataset.normaliser)
    return ModelCompetitor(name="model", forecaster=forecaster, config=replace(CONFIG, **changes), seed=5)


def test_a_model_is_calibrated_on_its_own_validation_forecasts_and_scored_before_and_after(dataset, tmp_path):
    model = competitor(tmp_path, dataset)
    calibration = fit_calibration(dataset, model)
    assert calibration is not None
    assert (calibration.origins, calibration.samples, len(calibration.factors)) == (16, 8, 4)
    digest = model_digest(tmp_path / "predictor")
    calibration.save(tmp_path / "predictor")
    assert model_digest(tmp_path / "predictor") != digest
    model = competitor(tmp_path, dataset)
    assert model.calibration == calibration
    scores = walk_forward(dataset, [model, LastValue()], CONFIG)
    assert scores.models == ("model", "model_raw", "last_value")
    ratio = scores.width[0, 0] / scores.width[0, 1]
    np.testing.assert_allclose(ratio, np.tile(calibration.factors, (len(ratio), 1)), rtol=1e-3)
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


def test_a_short_validation_range_gives_no_calibration(dataset, tmp_path):
    assert fit_calibration(dataset, competitor(tmp_path, dataset, calibration_origins=4)) is None


def test_a_forecaster_serves_calibrated_paths_for_the_settings_they_were_fitted_to(dataset, tmp_path):
    scratch_pair(PRESETS["tiny"], tmp_path, seed=3)
    calibration = Calibration(
        level=0.9, factors=(2.0,) * 4, origins=20, samples=8, temperature=1.0, top_k=0, top_p=1.0
    )
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
    raw = forecaster.paths(*asked, config=settings, seed=1, calibrated=False).paths
    served = forecaster.paths(*asked, config=settings, seed=1).paths
    np.testing.assert_array_equal(served, calibration.apply(raw, asked[0][:, -1, 3]))
    assert (served != raw).any()
    cool = replace(settings, temperature=0.6)
    np.testing.assert_array_equal(
        forecaster.paths(*asked, config=cool, seed=1).paths,
        forecaster.paths(*asked, config=cool, seed=1, calibrated=False).paths,
    )
