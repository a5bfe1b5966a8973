"""Walking forward over a real prepared dataset, the leaderboard, and competitors that misbehave."""

import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise, permutations
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.competitors import Context, LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.evaluation.metrics import wilson_interval
from kronos_model.evaluation.scores import FAN_QUANTILES, Fans, Scores
from kronos_model.evaluation.walk_forward import choose_origins, walk_forward
from kronos_model.forecaster import Forecast, Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, build, make_candles
from tests.support.scores import planted_scores

LOOKBACK, HORIZON = 24, 6
SMALL = EvaluationConfig(origins=7, samples=3, batch_origins=4)


@dataclass
class Noise:
    """A random walk with drift around the last close, each row from its own series and time alone."""

    name: str
    paths: int = 5
    drift: float = 0.001
    violation_rate: float = 0.25

    def forecast(self, context: Context) -> Forecast:
        rows = []
        for row, series in enumerate(context.series):
            rng = np.random.default_rng([int(context.open_time[row, -1]), len(series), len(self.name)])
            steps = rng.normal(self.drift, 0.01, (self.paths, HORIZON)).cumsum(axis=1)
            rows.append(float(context.features[row, -1, 3]) * np.exp(steps))
        close = np.stack(rows).astype(np.float32)
        return Forecast(paths=np.repeat(close[..., None], 6, axis=-1), violation_rate=self.violation_rate)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    config = DatasetConfig(lookback=LOOKBACK, horizon=HORIZON)
    candles = {
        "um:DOGEUSDT": make_candles(700, seed=1),
        "um:BTCUSDT": make_candles(690, seed=2, missing=[650]),
    }
    built = build(candles, config, tmp_path_factory.mktemp("datasets"))
    return WindowDataset.open(built.path)


@pytest.fixture(scope="module")
def scores(dataset: WindowDataset) -> Scores:
    return walk_forward(dataset, [Noise("noise"), LastValue()], SMALL)


@pytest.fixture(scope="module")
def forecaster(dataset: WindowDataset, tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    pair = scratch_pair(PRESETS["tiny"], tmp_path_factory.mktemp("tiny"), seed=3)
    return Forecaster.load(pair.tokenizer, pair.predictor, normaliser=dataset.normaliser)


def test_origins_are_evenly_spaced_in_each_series_first_and_last_included():
    locations = np.array([[row % 2, row // 2] for row in range(42)], np.int32)[::-1]
    chosen = choose_origins(locations, origins=6)
    assert locations[chosen, 0].tolist() == [0] * 6 + [1] * 6
    assert locations[chosen, 1].tolist() == [0, 4, 8, 12, 16, 20] * 2
    assert len(choose_origins(locations, origins=1000)) == 42


def test_every_model_is_scored_at_the_same_origins_of_the_test_range(dataset, scores):
    assert scores.crps.shape == (2, 14, HORIZON)
    assert scores.series_index.tolist() == [0] * 7 + [1] * 7
    assert sorted(scores.series) == ["um:BTCUSDT", "um:DOGEUSDT"]
    for index in range(2):
        own = scores.origin_ms[scores.series_index == index].tolist()
        assert all(earlier < later for earlier, later in pairwise(own))
    assert scores.origin_ms.min() >= dataset.manifest["test_from_ms"] + (LOOKBACK - 1) * HOUR_MS
    assert scores.horizon_ms == HORIZON * HOUR_MS
    assert scores.dataset_digest == dataset.manifest["digest"]


def test_the_scores_equal_loops_over_the_windows(dataset, scores):
    noise = Noise("noise")
    origins = choose_origins(dataset.locations("test"), origins=SMALL.origins)
    for n, origin in enumerate(origins.tolist()):
        window = dataset.batch("test", [origin])
        bars = window.features[0].numpy().astype(np.float64)
        last, truth = bars[LOOKBACK - 1, 3], bars[LOOKBACK:, 3]
        assert scores.last_close[n] == last
        assert scores.origin_ms[n] == window.open_time[0, LOOKBACK - 1]
        context = Context(
            features=window.features[:, :LOOKBACK].numpy(),
            open_time=window.open_time[:, :LOOKBACK],
            future_open_time=window.open_time[:, LOOKBACK:],
            series=window.series,
        )
        paths = noise.forecast(context).paths[0, :, :, 3].astype(np.float64)
        for h in range(HORIZON):
            y = math.log(truth[h] / last)
            x = [math.log(path[h] / last) for path in paths]
            spread = mean(abs(a - b) for a, b in permutations(x, 2))
            crps = mean(abs(a - y) for a in x) - spread / 2
            assert scores.crps[0, n, h] == pytest.approx(crps, abs=1e-9)
            assert scores.absolute_error[0, n, h] == pytest.approx(abs(median(x) - y), abs=1e-9)
            assert scores.squared_error[0, n, h] == pytest.approx((mean(x) - y) ** 2, abs=1e-9)
            price = abs(median(path[h] for path in paths) - truth[h])
            assert scores.price_error[0, n, h] == pytest.approx(price, abs=1e-9)
            ordered = sorted(x)  # of five, the quartiles are the second and the fourth
            assert scores.covered_50[0, n, h] == (ordered[1] <= y <= ordered[3])
            assert scores.width_50[0, n, h] == pytest.approx(ordered[3] - ordered[1], abs=1e-9)
            assert scores.crps[1, n, h] == pytest.approx(abs(y), abs=1e-9)
        hit = (median(path[-1] for path in paths) > last) == (truth[-1] > last)
        assert scores.direction_hit[0, n] == hit
        assert np.isnan(scores.direction_hit[1, n])


def test_the_size_of_a_batch_changes_no_score(dataset, scores):
    other = walk_forward(
        dataset,
        [Noise("noise"), LastValue()],
        EvaluationConfig(origins=7, samples=3, batch_origins=5),
    )
    assert_same(other, scores)


def test_competitors_see_no_bar_of_the_future_and_cannot_spoil_each_others_context(dataset, scores):
    class Nosy:
        name = "nosy"

        def forecast(self, context: Context) -> Forecast:
            for field in fields(Context):
                value = getattr(context, field.name)
                if isinstance(value, np.ndarray):
                    assert value.base is None  # not a view of something longer
            assert context.features.shape[1] == LOOKBACK
            assert (context.open_time[:, -1] + HOUR_MS == context.future_open_time[:, 0]).all()
            forecast = LastValue().forecast(context)
            context.features[:] = np.nan
            return forecast

    found = walk_forward(dataset, [Nosy(), Noise("noise")], SMALL)
    np.testing.assert_array_equal(found.crps, scores.crps[::-1])


def test_progress_ends_at_all_forecasts(dataset):
    seen: list[tuple[int, int]] = []
    walk_forward(dataset, [LastValue()], SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 14), (8, 14), (12, 14), (14, 14)]


def test_last_value_stays_at_the_last_close():
    features = np.random.default_rng(0).uniform(1, 2, (2, 4, 6)).astype(np.float32)
    context = Context(
        features=features,
        open_time=np.zeros((2, 4), np.int64),
        future_open_time=np.zeros((2, 3), np.int64),
        series=["a", "b"],
    )
    forecast = LastValue().forecast(context)
    assert forecast.paths.shape == (2, 2, 3, 6)
    for column, source in enumerate((3, 3, 3, 3, 4, 5)):
        expected = np.broadcast_to(features[:, -1, source, None, None], (2, 2, 3))
        np.testing.assert_array_equal(forecast.paths[..., column], expected)


def test_a_kronos_model_walks_with_its_seed_and_without_regard_to_batches(dataset, forecaster):
    config = EvaluationConfig(origins=3, samples=2, batch_origins=2)
    first = ModelCompetitor(name="challenger", forecaster=forecaster, config=config, seed=5)
    same = ModelCompetitor(name="base", forecaster=forecaster, config=config, seed=5)
    other = ModelCompetitor(name="other", forecaster=forecaster, config=config, seed=6)
    found = walk_forward(dataset, [first, same, other, LastValue()], config)
    np.testing.assert_array_equal(found.crps[0], found.crps[1])
    assert (found.crps[0] != found.crps[2]).any()
    assert np.isfinite(found.crps).all()
    again = walk_forward(dataset, [first], EvaluationConfig(origins=3, samples=2, batch_origins=6))
    np.testing.assert_allclose(again.crps[0], found.crps[0], rtol=1e-3)


def test_nan_in_a_models_paths_names_the_model_and_the_origin(dataset):
    class Broken(Noise):
        def forecast(self, context: Context) -> Forecast:
            forecast = super().forecast(context)
            if "um:DOGEUSDT" in context.series:
                forecast.paths[context.series.index("um:DOGEUSDT"), 1, 2, 4] = np.nan
            return forecast

    origins = choose_origins(dataset.locations("test"), origins=SMALL.origins)
    row = next(i for i, name in enumerate(dataset.batch("test", origins).series) if name == "um:DOGEUSDT")
    origin_ms = int(dataset.batch("test", origins).open_time[row, LOOKBACK - 1])
    moment = datetime.fromtimestamp(origin_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M")
    with pytest.raises(ModelError, match=f"from broken, found others at the origin {moment}") as caught:
        walk_forward(dataset, [LastValue(), Broken("broken")], SMALL)
    assert "um:DOGEUSDT" in str(caught.value)


def test_one_path_is_too_few_for_the_crps(dataset):
    with pytest.raises(ValueError, match="CRPS needs at least 2"):
        walk_forward(dataset, [Noise("noise", paths=1)], SMALL)
    with pytest.raises(ValueError, match="at least 2 for the CRPS"):
        EvaluationConfig(samples=1)


def test_paths_of_another_shape_name_the_competitor(dataset):
    class Short(Noise):
        def forecast(self, context: Context) -> Forecast:
            return Forecast(paths=super().forecast(context).paths[:, :, :-1], violation_rate=0.0)

    with pytest.raises(ModelError, match=r"from short, found \(4, 5, 5, 6\)"):
        walk_forward(dataset, [Short("short")], SMALL)


def test_two_competitors_of_one_name_are_refused(dataset):
    with pytest.raises(ValueError, match="different names"):
        walk_forward(dataset, [LastValue(), LastValue()], SMALL)


def test_a_dataset_without_a_test_range_is_refused(dataset):
    empty = WindowDataset(
        dataset.manifest,
        series=dataset._series,
        windows={"train": np.empty((0, 2), np.int32), "test": np.empty((0, 2), np.int32)},
    )
    with pytest.raises(DataError, match="windows in the test range"):
        walk_forward(empty, [LastValue()], SMALL)


def test_a_fan_holds_the_quantiles_and_the_truth_of_the_last_origin_of_each_series(dataset, scores):
    fans = scores.fans
    assert fans.quantiles.shape == (2, 2, len(FAN_QUANTILES), HORIZON)
    origins = choose_origins(dataset.locations("test"), origins=SMALL.origins)
    for index in range(2):
        n = int(np.flatnonzero(scores.series_index == index)[-1])
        close = dataset.batch("test", [origins[n]]).features[0, :, 3].numpy()
        assert fans.origin_ms[index] == scores.origin_ms[n]
        np.testing.assert_array_equal(fans.context[index], close[:LOOKBACK])
        np.testing.assert_array_equal(fans.realised[index], close[LOOKBACK:])
        np.testing.assert_array_equal(fans.quantiles[index, 1], np.full((5, HORIZON), close[LOOKBACK - 1]))
        median_error = np.abs(fans.quantiles[index, 0, 2] - fans.realised[index])
        np.testing.assert_allclose(median_error, scores.price_error[0, n], atol=1e-9)
        assert (np.diff(fans.quantiles[index, 0], axis=0) > 0).all()


def test_scores_are_the_same_after_a_round_trip_through_their_folder(scores, tmp_path):
    scores.save(tmp_path / "scores")
    scores.save(tmp_path / "scores")
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["scores.json", "scores.npz"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    assert_same(Scores.load(tmp_path / "scores"), scores)


def test_scores_that_cannot_be_read_end_in_a_sentence(scores, tmp_path):
    with pytest.raises(ModelError, match="expected saved scores"):
        Scores.load(tmp_path)
    folder = scores.save(tmp_path / "scores")
    np.savez(folder / "scores.npz", crps=np.array([{}], dtype=object))
    with pytest.raises(ModelError, match="evaluate again"):
        Scores.load(folder)
    np.savez(folder / "scores.npz", crps=np.ones(3))
    with pytest.raises(ModelError, match="evaluate again"):
        Scores.load(folder)
    (folder / "scores.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ModelError, match="evaluate again"):
        Scores.load(folder)


def test_the_leaderboard_equals_loops_over_the_scores(scores):
    rows = leaderboard(scores)
    assert [row["series"] for row in rows] == ["all"] * 2 + [name for name in scores.series for _ in range(2)]
    for row in rows:
        m = scores.models.index(row["model"])
        chosen = [
            n
            for n in range(len(scores.origin_ms))
            if row["series"] in ("all", scores.series[scores.series_index[n]])
        ]
        cells = [(n, h) for n in chosen for h in range(HORIZON)]
        crps = mean(float(scores.crps[m, n, h]) for n, h in cells)
        reference = mean(float(scores.crps[1, n, h]) for n, h in cells)
        expected = {
            "origins": len(chosen),
            "mae_bps": 1e4 * mean(float(scores.absolute_error[m, n, h]) for n, h in cells),
            "rmse_bps": 1e4 * math.sqrt(mean(float(scores.squared_error[m, n, h]) for n, h in cells)),
            "crps_bps": 1e4 * crps,
            "skill": 1 - crps / reference,
            "coverage_50": mean(float(scores.covered_50[m, n, h]) for n, h in cells),
            "coverage_90": mean(float(scores.covered_90[m, n, h]) for n, h in cells),
            "width_90_bps": 1e4 * mean(float(scores.width_90[m, n, h]) for n, h in cells),
            "violation_rate": 0.25 if row["model"] == "noise" else 0.0,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-9), name
        if row["series"] == "all":
            assert row["mae_price"] is None
        else:
            price = mean(float(scores.price_error[m, n, h]) for n, h in cells)
            assert row["mae_price"] == pytest.approx(price, abs=1e-9)


def test_direction_is_a_share_with_an_interval_and_absent_where_nothing_moves(scores):
    noise, still = sorted(leaderboard(scores)[:2], key=lambda row: row["model"] != "noise")
    share = mean(scores.direction_hit[0].tolist())
    assert noise["direction"] == pytest.approx(share)
    assert (noise["direction_low"], noise["direction_high"]) == pytest.approx(wilson_interval(share, 14))
    assert still["direction"] is None
    assert still["direction_low"] is None


def test_overlapping_forecasts_do_not_narrow_the_interval_of_the_direction():
    crps = {name: np.random.default_rng(1).uniform(0.01, 0.02, 60) for name in ("a", "last_value")}
    apart = leaderboard(planted_scores(crps, stride_hours=6, horizon=6))[0]
    overlapping = leaderboard(planted_scores(crps, stride_hours=1, horizon=6))[0]
    assert overlapping["direction"] == apart["direction"]
    narrow, wide = (row["direction_high"] - row["direction_low"] for row in (apart, overlapping))
    assert wide == pytest.approx(np.subtract(*wilson_interval(apart["direction"], 10)[::-1]))
    assert wide > 2 * narrow


def test_the_leaderboard_is_sorted_and_has_no_skill_without_its_reference():
    crps = {name: np.full(40, level) for name, level in (("worse", 0.03), ("better", 0.01))}
    rows = leaderboard(planted_scores(crps))
    assert [row["model"] for row in rows[:2]] == ["better", "worse"]
    assert rows[0]["skill"] is None


def test_scores_know_whether_they_overlap_the_pre_training(scores):
    assert scores.overlaps_pretraining  # the synthetic candles start in 2020
    assert not planted_scores({"a": np.ones(3)}).overlaps_pretraining


def assert_same(found: Scores, expected: Scores) -> None:
    for kind, ours, theirs in ((Scores, found, expected), (Fans, found.fans, expected.fans)):
        for field in fields(kind):
            if field.name != "fans":
                left, right = getattr(ours, field.name), getattr(theirs, field.name)
                np.testing.assert_array_equal(left, right, err_msg=field.name)
                assert type(left) is type(right)


def test_a_folder_of_scores_replaces_an_older_one_at_once(scores, tmp_path: Path, monkeypatch):
    folder = scores.save(tmp_path / "scores")
    before = (folder / "scores.json").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="went away"):
        scores.save(folder)
    assert (folder / "scores.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
