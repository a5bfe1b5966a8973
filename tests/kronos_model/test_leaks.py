"""Planted cheats: a model that peeks, a model that was trained on the test range, a model that learnt from a leak."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.context import Context, Forecast
from kronos_model.errors import DataError
from kronos_model.evaluation.baselines import make_baselines
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.config import Baseline, EvaluationConfig
from kronos_model.evaluation.gate import GatePolicy, judge
from kronos_model.evaluation.leaks import check_not_trained_on, find_peekers
from kronos_model.evaluation.walk_forward import walk_forward
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.references import EwmaCone
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, build, make_candles

LOOKBACK, HORIZON = 64, 6
EVERYONE = tuple(name for name in get_args(Baseline) if name != "garch" or find_spec("arch"))
CONFIG = EvaluationConfig(origins=4, samples=4, baselines=EVERYONE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    candles = {"um:DOGEUSDT": make_candles(900, seed=1), "um:BTCUSDT": make_candles(900, seed=2)}
    folder = tmp_path_factory.mktemp("datasets")
    return WindowDataset.open(build(candles, DatasetConfig(lookback=LOOKBACK, horizon=HORIZON), folder).path)


@dataclass(frozen=True)
class Peeker:
    """An honest cone, bent by a hundredth of the return that is still to come."""

    dataset: WindowDataset
    name: str = "peeker"

    def forecast(self, context: Context) -> Forecast:
        honest = EwmaCone(samples=4, seed=1).forecast(context)
        paths = honest.paths.copy()
        for row, series in enumerate(context.series):
            source = self.dataset._series[self.dataset.series.index(series)]
            at = int(np.searchsorted(source.open_time, context.future_open_time[row, -1]))
            coming = np.log(source.features[at, 3] / context.features[row, -1, 3])
            paths[row, ..., :4] *= np.exp(coming / 100)
        return Forecast(paths=paths, violation_rate=np.zeros(len(paths)))


def test_a_model_that_peeks_only_a_little_is_found_and_honest_ones_are_not(dataset, tmp_path):
    pair = scratch_pair(PRESETS["tiny"], tmp_path, seed=3)

    def everyone(data: WindowDataset) -> list:
        forecaster = Forecaster.load(pair.tokenizer, pair.predictor, normaliser=data.normaliser)
        baselines, notes = make_baselines(CONFIG, interval_ms=HOUR_MS, lookback=LOOKBACK, history=168, seed=0)
        assert notes == []
        return [
            ModelCompetitor(name="model", forecaster=forecaster, config=CONFIG, seed=0),
            Peeker(data),
            *baselines,
        ]

    assert find_peekers(dataset, everyone, CONFIG) == ["peeker"]


def test_perturbing_the_future_changes_every_later_candle_and_no_known_one(dataset):
    until = int(dataset.start_ms("test")[5])
    other = dataset.with_other_future(until)
    for ours, theirs in zip(dataset._series, other._series, strict=True):
        later = ours.open_time > until
        np.testing.assert_array_equal(ours.features[~later], theirs.features[~later])
        assert (ours.features[later, 3] != theirs.features[later, 3]).all()
        assert (theirs.features[:, 1] >= theirs.features[:, [0, 3]].max(axis=1)).all()


def test_a_test_range_that_a_model_has_trained_on_is_refused(dataset):
    first = int(dataset.start_ms("test").min()) + LOOKBACK * HOUR_MS
    check_not_trained_on(dataset, {"champion": first - HOUR_MS})
    with pytest.raises(
        DataError, match=r"found that champion reaches to .* UTC and the first candle to be forecast"
    ):
        check_not_trained_on(dataset, {"challenger": first - HOUR_MS, "champion": first})


def test_windows_of_training_that_reach_into_the_test_range_are_refused(dataset):
    windows = {**dataset._windows, "train": dataset.locations("test")[:10]}
    mixed = WindowDataset(dataset.manifest, series=dataset._series, windows=windows)
    with pytest.raises(DataError, match="this dataset's training range reaches to"):
        check_not_trained_on(mixed, {})


@dataclass(frozen=True)
class MeanReverter:
    """What is learnt where windows are normalised with their future: prices come back to the window's mean."""

    name: str = "challenger"

    def forecast(self, context: Context) -> Forecast:
        honest = EwmaCone(samples=16, seed=2).forecast(context)
        mean = context.features[:, :, 3].mean(axis=1)  # of the lookback: the future's share is missing now
        paths = honest.paths * (mean / context.features[:, -1, 3])[:, None, None, None]
        return Forecast(paths=paths.astype(np.float32), violation_rate=np.zeros(len(paths)))


def test_a_model_with_a_lower_token_loss_out_of_a_leak_is_rejected(dataset):
    """In leaky windows the mean knows the future: the loss there falls, and the forecasts get worse."""
    windows = dataset.batch("validation", np.arange(dataset.count("validation")))
    close = np.log(windows.features[:, :, 3].numpy().astype(np.float64))
    future = close[:, LOOKBACK:]
    honest_loss = ((future - close[:, LOOKBACK - 1 : LOOKBACK]) ** 2).mean()
    leaky_loss = ((future - future.mean(axis=1, keepdims=True)) ** 2).mean()
    assert leaky_loss < honest_loss / 2
    config = EvaluationConfig(origins=60, samples=16)
    base = EwmaCone(samples=16, seed=2, name="base")
    competitors = [MeanReverter(), base, EwmaCone(samples=16, seed=3)]
    decision = judge(walk_forward(dataset, competitors, config), GatePolicy())
    assert decision.verdict == "reject"
    assert "challenger is worse than base" in decision.reasons[0]
