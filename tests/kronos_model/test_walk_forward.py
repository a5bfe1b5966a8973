"""Walking forward over a real prepared dataset, the leaderboard, and competitors that misbehave."""

import json
import math
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import pairwise, permutations
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.context import Context, Forecast
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.competitors import LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.scores import FAN_QUANTILES, QUANTILES, Fans, Scores
from kronos_model.evaluation.walk_forward import choose_origins, walk_forward
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, build, make_candles
from tests.support.quantiles import path_quantiles
from tests.support.scores import planted_scores

LOOKBACK, HORIZON = 24, 6
SMALL = EvaluationConfig(origins=7, samples=3, batch_origins=4)


@dataclass
class Noise:
    """A random walk with drift around the last close, each row from its own series and time alone."""

    name: str
    paths: int = 5
    drift: float = 0.001

    def forecast(self, context: Context) -> Forecast:
        rows = []
        for row, series in enumerate(context.series):
            rng = np.random.default_rng([int(context.open_time[row, -1]), len(series), len(self.name)])
            steps = rng.normal(self.drift, 0.01, (self.paths, HORIZON)).cumsum(axis=1)
            rows.append(float(context.features[row, -1, 3]) * np.exp(steps))
        close = np.stack(rows).astype(np.float32)
        broken = context.open_time[:, -1] // HOUR_MS % 8 / 8
        return Forecast(paths=np.repeat(close[..., None], 6, axis=-1), violation_rate=broken)


def origins_of(dataset: WindowDataset) -> np.ndarray:
    return choose_origins(dataset.locations("test"), dataset.start_ms("test"), origins=SMALL.origins)


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


def test_origins_are_evenly_spaced_times_first_and_last_included():
    locations = np.array([[row % 2, row // 2] for row in range(42)], np.int32)[::-1]
    start_ms = locations[:, 1] * HOUR_MS
    chosen = choose_origins(locations, start_ms, origins=6)
    assert locations[chosen, 0].tolist() == [0] * 6 + [1] * 6
    assert locations[chosen, 1].tolist() == [0, 4, 8, 12, 16, 20] * 2
    assert len(choose_origins(locations, start_ms, origins=1000)) == 42


def test_series_of_unequal_length_are_forecast_at_the_same_times():
    locations = np.array([(0, row) for row in range(21)] + [(1, row) for row in range(9)], np.int32)
    start_ms = np.where(locations[:, 0] == 0, locations[:, 1], locations[:, 1] + 12) * HOUR_MS
    chosen = choose_origins(locations, start_ms, origins=6)
    assert (start_ms[chosen] // HOUR_MS).tolist() == [0, 4, 8, 12, 16, 20, 12, 16, 20]


def test_a_stride_takes_every_so_many_bars_whatever_the_number_of_origins():
    locations = np.array([(0, row) for row in range(21) if row != 10], np.int32)
    start_ms = locations[:, 1] * HOUR_MS
    chosen = choose_origins(locations, start_ms, origins=2, stride_ms=5 * HOUR_MS)
    assert (start_ms[chosen] // HOUR_MS).tolist() == [0, 5, 15, 20]  # 10 is a hole


def test_every_model_is_scored_at_the_same_origins_of_the_test_range(dataset, scores):
    assert scores.crps.shape == (2, 11, HORIZON)  # one series has a hole where three origins would be
    assert scores.series_index.tolist() == [0] * 4 + [1] * 7
    assert sorted(scores.series) == ["um:BTCUSDT", "um:DOGEUSDT"]
    for index in range(2):
        own = scores.origin_ms[scores.series_index == index].tolist()
        assert set(own) <= set(scores.origin_ms[scores.series_index == 1].tolist())
        assert all(earlier < later for earlier, later in pairwise(own))
    assert scores.origin_ms.min() >= dataset.manifest["test_from_ms"] + (LOOKBACK - 1) * HOUR_MS
    assert scores.horizon_ms == HORIZON * HOUR_MS
    assert scores.dataset_digest == dataset.manifest["digest"]


def test_the_scores_equal_loops_over_the_windows(dataset, scores):
    noise = Noise("noise")
    half, nine = scores.level(0.5), scores.level(0.9)
    origins = origins_of(dataset)
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
            history=dataset.known_closes("test", [origin], LOOKBACK),
        )
        paths = noise.forecast(context).paths[0, :, :, 3].astype(np.float64)
        for h in range(HORIZON):
            y = math.log(truth[h] / last)
            x = [math.log(path[h] / last) for path in paths]
            spread = mean(abs(a - b) for a, b in permutations(x, 2))
            crps = mean(abs(a - y) for a in x) - spread / 2
            assert scores.crps[0, n, h] == pytest.approx(crps, abs=1e-9)
            assert scores.median[0, n, h] == pytest.approx(median(x), abs=1e-9)
            assert scores.mean[0, n, h] == pytest.approx(mean(x), abs=1e-9)
            price = median(path[h] for path in paths)
            assert last * math.exp(scores.median[0, n, h]) == pytest.approx(price, abs=1e-9)
            ends = path_quantiles(x, [0.25, 0.75])
            assert scores.covered[half, 0, n, h] == (ends[0] <= y <= ends[1])
            assert scores.width[half, 0, n, h] == pytest.approx(ends[1] - ends[0], abs=1e-9)
            assert scores.crps[1, n, h] == pytest.approx(abs(y), abs=1e-9)
            assert scores.realised[n, h] == pytest.approx(y, abs=1e-12)
            ratio = mean(path[h] / last for path in paths)
            assert scores.mean_ratio[0, n, h] == pytest.approx(ratio, abs=1e-9)
            assert scores.probability_up[0, n, h] == mean(v > 0 for v in x)
            low, high = path_quantiles(x, [0.05, 0.95])
            assert scores.covered[nine, 0, n, h] == (low <= y <= high)
            winkler = high - low + 20 * (max(low - y, 0) + max(y - high, 0))
            assert scores.winkler[nine, 0, n, h] == pytest.approx(winkler, abs=1e-9)
            rank = scores.pit[0, n, h] * (len(x) + 1)
            assert sum(v < y for v in x) <= rank <= sum(v < y for v in x) + 1
        moves = np.diff(np.log(np.concatenate([np.full((len(paths), 1), last), paths], axis=1)), axis=1)
        assert scores.variance[0, n] == pytest.approx((moves**2).sum(axis=1).mean(), abs=1e-12)
        assert scores.next_open[n] == bars[LOOKBACK, 0]
        correlations = [np.corrcoef(paths.mean(axis=0), bars[LOOKBACK:, field])[0, 1] for field in range(4)]
        assert scores.price_ic[0, n] == pytest.approx(mean(correlations), abs=1e-6)
        assert np.isnan(scores.price_ic[1, n])  # a straight line correlates with nothing
        hit = (median(path[-1] for path in paths) > last) == (truth[-1] > last)
        assert scores.direction_hit()[0, n, -1] == hit
        assert np.isnan(scores.direction_hit()[1, n, -1])


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
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_last_value_stays_at_the_last_close():
    features = np.random.default_rng(0).uniform(1, 2, (2, 4, 6)).astype(np.float32)
    context = Context(
        features=features,
        open_time=np.zeros((2, 4), np.int64),
        future_open_time=np.zeros((2, 3), np.int64),
        series=["a", "b"],
        history=features[:, :, 3].astype(np.float64),
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
    np.testing.assert_array_equal(again.violation_rate[0], found.violation_rate[0])
    assert len(set(found.violation_rate[0].tolist())) > 2  # each origin has its own


def test_a_violation_rate_for_all_origins_at_once_names_the_competitor(dataset):
    class Pooled(Noise):
        def forecast(self, context: Context) -> Forecast:
            return replace(super().forecast(context), violation_rate=np.array(0.5))

    with pytest.raises(ModelError, match="each of the 4 origins from pooled"):
        walk_forward(dataset, [Pooled("pooled")], SMALL)


def test_nan_in_a_models_paths_names_the_model_and_the_origin(dataset):
    class Broken(Noise):
        def forecast(self, context: Context) -> Forecast:
            forecast = super().forecast(context)
            if "um:DOGEUSDT" in context.series:
                forecast.paths[context.series.index("um:DOGEUSDT"), 1, 2, 4] = np.nan
            return forecast

    origins = origins_of(dataset)
    row = next(i for i, name in enumerate(dataset.batch("test", origins).series) if name == "um:DOGEUSDT")
    origin_ms = int(dataset.batch("test", origins).open_time[row, LOOKBACK - 1])
    moment = datetime.fromtimestamp(origin_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M")
    with pytest.raises(ModelError, match=f"from broken, found others at the origin {moment}") as caught:
        walk_forward(dataset, [LastValue(), Broken("broken")], SMALL)
    assert "um:DOGEUSDT" in str(caught.value)


def test_one_path_is_too_few_for_the_crps(dataset):
    with pytest.raises(ValueError, match="CRPS needs at least 2"):
        walk_forward(dataset, [Noise("noise", paths=1)], SMALL)
    with pytest.raises(ValueError, match="samples: expected at least 2, found 1; raise it"):
        EvaluationConfig(samples=1)


def test_paths_of_another_shape_name_the_competitor(dataset):
    class Short(Noise):
        def forecast(self, context: Context) -> Forecast:
            made = super().forecast(context)
            return replace(made, paths=made.paths[:, :, :-1])

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
    origins = origins_of(dataset)
    for index in range(2):
        n = int(np.flatnonzero(scores.series_index == index)[-1])
        close = dataset.batch("test", [origins[n]]).features[0, :, 3].numpy()
        assert fans.origin_ms[index] == scores.origin_ms[n]
        np.testing.assert_array_equal(fans.context[index], close[:LOOKBACK])
        np.testing.assert_array_equal(fans.realised[index], close[LOOKBACK:])
        np.testing.assert_array_equal(fans.quantiles[index, 1], np.full((5, HORIZON), close[LOOKBACK - 1]))
        expected = scores.last_close[n] * np.exp(scores.median[0, n])
        np.testing.assert_allclose(fans.quantiles[index, 0, 2], expected, atol=1e-9)
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


def test_scores_know_whether_they_overlap_the_pre_training(scores):
    assert scores.overlaps_pretraining  # the synthetic candles start in 2020
    assert not planted_scores({"a": np.ones(3)}).overlaps_pretraining


def test_directions_inside_the_fee_band_do_not_count():
    scores = planted_scores({"a": np.full(6, 0.001)})
    signs = np.sign(scores.median) == np.sign(scores.realised)
    np.testing.assert_array_equal(scores.direction_hit(), signs)
    assert np.isnan(scores.direction_hit(band=0.01)).all()  # every move is 1 %
    assert not np.isnan(scores.direction_hit(band=0.0099)).any()


def test_the_scale_of_mase_is_the_random_walks_error_over_the_training_rows(dataset, scores):
    for index, name in enumerate(scores.series):
        own = dataset.locations("train")[:, 0] == dataset.series.index(name)
        windows = dataset.batch("train", np.flatnonzero(own)).features[:, :, 3].numpy().astype(np.float64)
        close = [*windows[0], *windows[1:, -1]]
        assert scores.price_scale[index] == pytest.approx(mean(abs(b - a) for a, b in pairwise(close)))
        steps = mean(abs(math.log(b / a)) for a, b in pairwise(close))
        assert scores.return_scale[index] == pytest.approx(steps)


def test_history_reaches_back_before_the_lookback_and_keeps_the_close_before_a_hole(dataset):
    origins = origins_of(dataset)
    windows, history = dataset.batch("test", origins), dataset.known_closes("test", origins, 200)
    np.testing.assert_array_equal(history[:, -LOOKBACK:], windows.features[:, :LOOKBACK, 3].numpy())
    bitcoin = dataset.series.index("um:BTCUSDT")
    source = dataset._series[bitcoin]
    closes = dict(zip(source.open_time.tolist(), source.features[:, 3].tolist(), strict=True))
    row = max(n for n, name in enumerate(windows.series) if name == "um:BTCUSDT")
    last, filled = 0.0, 0
    for bar, found in enumerate(history[row].tolist()):
        time = int(windows.open_time[row, LOOKBACK - 1]) - (199 - bar) * HOUR_MS
        filled += time not in closes
        last = closes.get(time, last)
        assert found == last
    assert filled == 1
    assert np.isnan(dataset.known_closes("test", origins, 10_000)[:, 0]).all()


def test_a_walk_goes_on_after_the_last_finished_batch(dataset, scores, tmp_path):
    calls: list[int] = []

    class Dying(Noise):
        def forecast(self, context: Context) -> Forecast:
            calls.append(len(context.series))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().forecast(context)

    kept: list[int] = []
    told: dict = {"work": tmp_path, "keep": lambda batch, forecasts: kept.append(batch)}
    competitors = [Dying("noise"), LastValue()]
    with pytest.raises(KeyboardInterrupt):
        walk_forward(dataset, competitors, SMALL, **told)
    seen: list[tuple[int, int]] = []
    told["progress"] = lambda done, total: seen.append((done, total))
    assert_same(walk_forward(dataset, competitors, SMALL, **told), scores)
    assert calls == [4, 4, 3, 3]  # the third is made twice
    assert kept == [0, 1, 2]
    assert seen[-1] == (22, 22)


def test_forecasts_are_handed_over_in_prices_with_every_path_on_request(dataset, scores):
    kept = []
    walk_forward(
        dataset,
        [Noise("noise"), LastValue()],
        replace(SMALL, keep_paths=True),
        keep=lambda batch, forecasts: kept.append(forecasts),
    )
    assert [len(one.series) for one in kept] == [4, 4, 3]
    first = kept[0]
    paths = first.paths["noise"].astype(np.float64)
    ratios = np.log(paths / scores.last_close[:4, None, None])
    expected = scores.last_close[:4, None] * np.exp(path_quantiles(ratios, QUANTILES, axis=1))
    np.testing.assert_allclose(first.quantiles[0].transpose(2, 0, 1), expected, rtol=1e-9)
    np.testing.assert_allclose(first.mean[0], paths.mean(axis=1), rtol=1e-9)
    realised = scores.last_close[:4, None] * np.exp(scores.realised[:4])
    np.testing.assert_allclose(first.realised, realised, rtol=1e-12)
    assert (first.open_time[:, 0] == first.origin_ms + HOUR_MS).all()


def test_a_series_without_a_window_at_the_origins_is_told_and_the_others_are_scored(dataset):
    only = dataset.locations("test")[dataset.locations("test")[:, 0] == 1]
    one = WindowDataset(dataset.manifest, series=dataset._series, windows={**dataset._windows, "test": only})
    found = walk_forward(one, [LastValue()], SMALL, notes=["told before"])
    assert found.series == (dataset.series[1],)
    assert found.notes[0] == "told before"
    assert f"{dataset.series[0]} has no window at the origins of the test range" in found.notes[1]


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


@pytest.mark.parametrize("version", [2, 4, None])
def test_scores_of_another_version_are_refused_with_the_remedy(scores, tmp_path, version):
    file = scores.save(tmp_path / "scores") / "scores.json"
    told = json.loads(file.read_text())
    assert Scores.load(file.parent).horizon == scores.horizon
    file.write_text(json.dumps(told | {"version": version}))
    with pytest.raises(ModelError, match=r"expected scores of version 3 in .*evaluate again"):
        Scores.load(file.parent)
