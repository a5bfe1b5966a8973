"""Post-processing from a dataset's validation range, and how a post-processed network is scored on the test range."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.evaluation.baselines import make_baselines
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.postprocessing import candidates, fit_postprocess
from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.walk_forward import walk_forward
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import REFERENCES
from kronos_model.sampling_config import SamplingConfig
from kronos_model.served import Served
from kronos_model.spread import Spread
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, build, make_candles

CONFIG = EvaluationConfig(
    origins=5, samples=8, postprocess_origins=20, sampling_origins=10, try_top_p=(1.0,), keep_paths=True
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    candles = {"um:DOGEUSDT": make_candles(900, seed=1), "um:BTCUSDT": make_candles(900, seed=2)}
    built = build(candles, DatasetConfig(lookback=64, horizon=4), tmp_path_factory.mktemp("datasets"))
    return WindowDataset.open(built.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    scratch_pair(PRESETS["tiny"], root, seed=3)
    return root


def competitor(
    folder: Path,
    dataset: WindowDataset,
    found: PostProcess | None = None,
    *,
    name: str = "challenger",
    **changes,
) -> ModelCompetitor:
    forecaster = Forecaster.load(folder / "tokenizer", folder / "predictor", normaliser=dataset.normaliser)
    forecaster.postprocess = found
    return ModelCompetitor(name=name, forecaster=forecaster, config=replace(CONFIG, **changes), seed=5)


def made(dataset: WindowDataset, **changes) -> PostProcess:
    settings = {
        "horizon": 4, "lookback": 64, "interval": "1h", "temperature": 0.8, "top_k": 0, "top_p": 1.0,
        "location": (0.25,), "members": (NETWORK, *REFERENCES), "weights": (0.5, 0.25, 0.125, 0.125),
        "spread": Spread(levels=(0.9,), factors=((1.5,),)),
        "spread_alone": Spread(levels=(0.9,), factors=((0.5,),)), "origins": 24, "samples": 8,
    }  # fmt: skip
    return PostProcess(**settings | changes)


def walk(
    dataset: WindowDataset, models: list[ModelCompetitor], kept: list | None = None, **changes
) -> Scores:
    config = replace(CONFIG, **changes)
    baselines, _ = make_baselines(config, interval_ms=HOUR_MS, lookback=64, history=168, seed=5)
    keep = (lambda batch, one: kept.append(one)) if kept is not None else (lambda batch, one: None)
    return walk_forward(dataset, [*models, *baselines], config, keep=keep)


def test_it_is_fitted_for_the_windows_of_the_dataset_twice_alike_and_says_what_was_tried(dataset, folder):
    found, notes = fit_postprocess(dataset, competitor(folder, dataset))
    assert notes == []
    assert (found.horizon, found.lookback, found.interval) == (4, 64, "1h")
    assert found.members == (NETWORK, *REFERENCES)
    assert (found.origins, found.samples) == (40, 8)
    assert {one.name for one in found.steps} >= {"sampling", "location", "blend", "spread"}
    assert fit_postprocess(dataset, competitor(folder, dataset)) == (found, [])


def test_it_is_fitted_on_validation_windows_alone(dataset, folder):
    model = competitor(folder, dataset)
    test_from = int(dataset.start_ms("test").min())
    assert fit_postprocess(dataset.with_other_future(test_from), model) == fit_postprocess(dataset, model)
    validation_from = int(dataset.start_ms("validation").min())
    assert fit_postprocess(dataset.with_other_future(validation_from), model) != fit_postprocess(
        dataset, model
    )


def test_few_validation_origins_leave_the_references_alone_and_every_step_says_why(dataset, folder):
    found, _ = fit_postprocess(dataset, competitor(folder, dataset, postprocess_origins=4))
    assert found.pool == {NETWORK: 0.0, **dict.fromkeys(REFERENCES, 1 / 3)}
    assert (found.spread, found.spread_alone, found.location) == (None, None, (1.0,))
    assert all("not tried: half of the validation range has" in one.reason for one in found.steps)


def test_the_configured_sampling_stays_where_nothing_else_is_to_be_tried():
    given = replace(CONFIG, temperature=0.7, top_k=3, top_p=0.6)
    first, *others = candidates(given)
    assert (first.temperature, first.top_k, first.top_p, first.samples) == (0.7, 3, 0.6, 8)
    assert [(one.temperature, one.top_k, one.top_p) for one in others] == [
        (0.8, 3, 1.0), (1.0, 3, 1.0), (1.2, 3, 1.0)
    ]  # fmt: skip
    assert len(candidates(CONFIG)) == 3  # the configured one is one of them
    assert len(candidates(replace(CONFIG, try_temperatures=()))) == 1
    assert candidates(replace(CONFIG, samples=100))[0].samples == 8


def test_switched_off_no_candidate_is_drawn(dataset, folder):
    found, _ = fit_postprocess(dataset, competitor(folder, dataset, sampling_origins=0, temperature=0.9))
    assert (found.temperature, found.top_p) == (0.9, 1.0)
    assert found.steps[0].reason == "not tried: it is switched off"


def test_a_network_is_scored_as_it_draws_alone_and_in_its_pool_from_paths_drawn_once(dataset, folder):
    found, kept = made(dataset), []
    enough = {"samples": 16}  # for the network's median
    models = [
        competitor(folder, dataset, found, **enough),
        competitor(folder, dataset, name="base", **enough),
    ]
    scores = walk(dataset, models, kept, **enough)
    assert scores.models[:4] == ("challenger", "challenger_raw", "blend", "base")
    assert scores.models[-1] == "references"
    assert {"last_value", "ewma", "har", "bootstrap"} < set(scores.models)
    assert scores.weights == {"blend": found.pool}
    paths, last = kept[0].paths, scores.last_close[: len(kept[0].series)]
    bars = {name: one[..., None].repeat(6, axis=-1) for name, one in paths.items()}
    alone = found.alone(bars["challenger_raw"], last)[..., 3]
    np.testing.assert_allclose(paths["challenger"], alone, rtol=1e-6)
    members = {NETWORK: bars["challenger_raw"], **{name: bars[name] for name in REFERENCES}}
    np.testing.assert_allclose(paths["blend"], found.blend(members, last)[..., 3], rtol=1e-6)
    pool = np.concatenate([paths["ewma"][:, :6], paths["har"][:, :5], paths["bootstrap"][:, :5]], axis=1)
    np.testing.assert_array_equal(np.sort(paths["references"], axis=1), np.sort(pool, axis=1))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_crps_after_each_step_leads_from_what_is_drawn_to_what_is_served(dataset, folder):
    scores = walk(dataset, [competitor(folder, dataset, made(dataset))])
    assert scores.stages == ("raw", "location", "blend", "spread")
    same(scores.stage_crps[0], scores.crps[scores.index("challenger_raw")])
    same(scores.stage_crps[3], scores.crps[scores.index("blend")])
    unscaled = made(dataset, spread=None, spread_alone=None)
    plain = walk(dataset, [competitor(folder, dataset, unscaled)])
    same(scores.stage_crps[1], plain.crps[plain.index("challenger")])
    same(scores.stage_crps[2], plain.crps[plain.index("blend")])
    assert walk(dataset, [competitor(folder, dataset)]).stages == ()


def test_as_drawn_is_scored_apart_only_where_the_network_alone_is_another(dataset, folder):
    found = made(dataset, location=(1.0,), spread_alone=None)
    models = [competitor(folder, dataset, found, name=name) for name in ("challenger", "champion")]
    assert walk(dataset, models).models[:4] == ("challenger", "blend", "champion", "champion_blend")
    off = competitor(folder, dataset, found, postprocess=False)
    assert "blend" not in walk(dataset, [off]).models


def test_the_network_draws_as_its_post_processing_was_fitted(dataset, folder):
    cool = walk(dataset, [competitor(folder, dataset, made(dataset))])
    plain = walk(dataset, [competitor(folder, dataset, temperature=0.8)])
    raw = cool.crps[cool.index("challenger_raw")]
    np.testing.assert_array_equal(raw, plain.crps[plain.index("challenger")])


def test_few_paths_are_scored_where_the_network_draws_more_for_its_median(dataset, folder):
    kept: list = []
    model = competitor(folder, dataset, made(dataset))
    assert (model.sampling.samples, CONFIG.samples) == (16, 8)
    walk(dataset, [model], kept)
    drawn = ("challenger", "challenger_raw", "blend", "ewma", "references")
    assert [kept[0].paths[name].shape[1] for name in drawn] == [8] * 5


def test_the_references_are_those_that_serve(dataset, folder):
    kept: list = []
    seen = []

    class Watching:
        name = "watching"

        def forecast(self, context):
            seen.append(Served.references(64).paths(context, SamplingConfig(samples=8), 5).paths)
            return models[0].forecast(context)

    models = [competitor(folder, dataset)]
    baselines, _ = make_baselines(CONFIG, interval_ms=HOUR_MS, lookback=64, history=168, seed=5)
    walk_forward(dataset, [Watching(), *baselines], CONFIG, keep=lambda batch, one: kept.append(one))
    np.testing.assert_array_equal(kept[0].paths["references"], seen[0][..., 3])
