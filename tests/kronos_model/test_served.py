"""What is served: the pool of a network and the references by the fitted weights, or the references alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.context import Context, Forecast, history_bars
from kronos_model.errors import ModelError
from kronos_model.evaluation.baselines import make_baselines
from kronos_model.evaluation.competitors import LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.walk_forward import Forecasts, walk_forward
from kronos_model.features import CLOSE
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair, write_metadata
from kronos_model.normalise import Normaliser
from kronos_model.postprocess import FEWEST_FOR_MEDIAN, NETWORK, PostProcess
from kronos_model.references import make_references
from kronos_model.sampling_config import SamplingConfig
from kronos_model.served import Served, context_of
from kronos_model.served_words import REFERENCES_MODEL
from kronos_model.spread import Spread
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from storage.past import Past, past_of
from storage.schema import SeriesKey
from tests.support.datasets import HOUR_MS, build, make_candles

LOOKBACK, HORIZON, SAMPLES, SEED = 80, 4, 11, 5
CANDLES = {"um:DOGEUSDT": make_candles(700, seed=1), "um:BTCUSDT": make_candles(690, seed=2, missing=[560])}
SAMPLING = SamplingConfig(samples=SAMPLES)
POOL = PostProcess(
    horizon=HORIZON,
    lookback=LOOKBACK,
    interval="1h",
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    location=(0.5, 0.0),
    members=(NETWORK, "ewma", "har", "bootstrap"),
    weights=(0.4, 0.3, 0.2, 0.1),
    spread=Spread(levels=(0.5, 0.9), factors=((1.1,) * HORIZON, (1.3,) * HORIZON)),
    spread_alone=None,
    origins=40,
    samples=20,
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    pair = scratch_pair(PRESETS["tiny"], tmp_path_factory.mktemp("pair"), seed=1)
    return Forecaster.load(pair.tokenizer, pair.predictor)


def served(network: Forecaster, known: PostProcess | None, *, prices_only: bool = False) -> Served:
    own = Forecaster(
        network.tokenizer,
        network.predictor,
        network.normaliser,
        postprocess=known,
        prices_only=prices_only,
    )
    return Served.of(own, name="champion")


def past(name: str, end: int, lookback: int = LOOKBACK) -> Past:
    history = history_bars(lookback, HOUR_MS)
    return past_of(
        SeriesKey.parse(name, "1h"),
        CANDLES[name][:end].tail(history),
        lookback=lookback,
        horizon=HORIZON,
        history=history,
    )


@pytest.fixture(scope="module")
def context() -> Context:
    return context_of([past("um:DOGEUSDT", 650), past("um:BTCUSDT", 680)])


@dataclass
class Watching:
    """Keeps what it was shown."""

    name: str = "watching"
    seen: list[Context] = field(default_factory=list)

    def forecast(self, context: Context) -> Forecast:
        self.seen.append(context)
        return LastValue().forecast(context)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], WindowDataset]:
    def of(lookback: int) -> WindowDataset:
        root = tmp_path_factory.mktemp("datasets")
        return WindowDataset.open(
            build(CANDLES, DatasetConfig(lookback=lookback, horizon=HORIZON), root).path
        )

    return of


@dataclass
class Walked:
    """Paths of a walk-forward, of a model by name, and the contexts that belong to them."""

    paths: np.ndarray
    contexts: list[Context]


def walk(dataset: WindowDataset, model: str, competitors: list, *, samples: int) -> Walked:
    config = EvaluationConfig(origins=5, batch_origins=4, samples=samples, keep_paths=True)
    history = history_bars(dataset.lookback, HOUR_MS)
    baselines, _ = make_baselines(
        config, interval_ms=HOUR_MS, lookback=dataset.lookback, history=history, seed=SEED
    )
    watching, kept = Watching(), list[Forecasts]()
    walk_forward(
        dataset, [watching, *competitors, *baselines], config, keep=lambda batch, one: kept.append(one)
    )
    return Walked(paths=np.concatenate([one.paths[model] for one in kept]), contexts=watching.seen)


@pytest.mark.parametrize("lookback", [24, LOOKBACK])
def test_the_references_of_a_past_are_those_of_a_walk_forward_digit_for_digit(
    lookback: int, dataset: Callable[[int], WindowDataset]
) -> None:
    walked = walk(dataset(lookback), "references", [], samples=SAMPLES)
    judged = iter(walked.paths)
    compared = 0
    for seen in walked.contexts:
        for row, name in enumerate(seen.series):
            origin = int(seen.open_time[row, -1])
            end = int((CANDLES[name]["open_time"].dt.epoch("ms") <= origin).sum())
            mine = context_of([past(name, end, lookback)])
            np.testing.assert_array_equal(mine.history[0], seen.history[row])
            np.testing.assert_array_equal(mine.features[0], seen.features[row])
            found = Served.references(lookback).paths(mine, SAMPLING, SEED)
            np.testing.assert_array_equal(found.paths[0, ..., CLOSE], next(judged))
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("samples", [5, FEWEST_FOR_MEDIAN, 50])
def test_what_is_served_is_what_was_judged_bit_for_bit_at_any_number_of_paths(
    samples: int,
    network: Forecaster,
    dataset: Callable[[int], WindowDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Forecaster.paths

    def first_of_many(
        self: Forecaster, *others: object, config: SamplingConfig, **options: object
    ) -> Forecast:
        """However many are asked for, the same draws: how they are batched changes their last bits."""
        drawn = whole(self, *others, config=replace(config, samples=64), **options)
        return replace(drawn, paths=drawn.paths[:, : config.samples])

    monkeypatch.setattr(Forecaster, "paths", first_of_many)
    one = served(network, POOL)
    config = EvaluationConfig(samples=samples)
    challenger = ModelCompetitor(name="challenger", forecaster=one.forecaster, config=config, seed=SEED)
    walked = walk(dataset(LOOKBACK), "blend", [challenger], samples=samples)
    asked = SamplingConfig(samples=samples)
    found = [one.paths(seen, asked, SEED).paths[..., CLOSE] for seen in walked.contexts]
    np.testing.assert_array_equal(np.concatenate(found), walked.paths)


def test_a_served_network_is_its_blend_with_the_references_as_the_evaluation_makes_it(
    network: Forecaster, context: Context
) -> None:
    drawn = network.paths(
        context.features,
        context.open_time,
        context.future_open_time,
        context.series,
        config=replace(SAMPLING, samples=FEWEST_FOR_MEDIAN),
        seed=SEED,
    ).paths
    references, _ = make_references(LOOKBACK, samples=SAMPLES, seed=SEED)
    members = {name: one.forecast(context).paths for name, one in references.items()}
    expected = POOL.blend({NETWORK: drawn, **members}, context.features[:, -1, CLOSE], samples=SAMPLES)
    found = served(network, POOL).paths(context, SAMPLING, SEED)
    np.testing.assert_array_equal(found.paths, expected)
    assert found.paths.shape == (2, SAMPLES, HORIZON, 6)


def test_a_row_does_not_depend_on_the_others_nor_on_their_seeds(
    network: Forecaster, context: Context
) -> None:
    one = served(network, POOL)
    together = one.paths(context, SAMPLING, [7, 8]).paths
    for row, (name, end, seed) in enumerate((("um:DOGEUSDT", 650, 7), ("um:BTCUSDT", 680, 8))):
        alone = one.paths(context_of([past(name, end)]), SAMPLING, seed).paths[0]
        np.testing.assert_allclose(together[row], alone, rtol=2e-5)
    again = one.paths(context, SAMPLING, [7, 8]).paths
    np.testing.assert_array_equal(again, together)
    np.testing.assert_array_equal(
        Served.references(LOOKBACK).paths(context, SAMPLING, [7, 8]).paths[1],
        Served.references(LOOKBACK).paths(context_of([past("um:BTCUSDT", 680)]), SAMPLING, 8).paths[0],
    )


@pytest.mark.parametrize(
    ("known", "samples", "drawn"),
    [
        (POOL, 100, 40),
        (POOL, 10, FEWEST_FOR_MEDIAN),  # 4 in the pool
        (replace(POOL, location=(1.0,)), 10, 4),
        (replace(POOL, weights=(0.0, 0.5, 0.3, 0.2)), 10, None),
        (POOL, 1, FEWEST_FOR_MEDIAN),
        (None, 10, 10),
    ],
)
def test_the_network_draws_what_the_pool_takes_of_it_and_enough_for_its_median(
    network: Forecaster,
    context: Context,
    known: PostProcess | None,
    samples: int,
    drawn: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, real = [], Forecaster.paths

    def counted(self: Forecaster, *others: object, **options: object) -> Forecast:
        asked.append(options["config"].samples)
        return real(self, *others, **options)

    monkeypatch.setattr(Forecaster, "paths", counted)
    found = served(network, known).paths(context, SamplingConfig(samples=samples), SEED).paths
    assert found.shape[1] == samples
    assert asked == ([] if drawn is None else [drawn])


def test_one_path_comes_from_whom_the_pool_gives_most_to(network: Forecaster, context: Context) -> None:
    one = SamplingConfig(samples=1)
    heavy = replace(POOL, weights=(0.1, 0.1, 0.7, 0.1), spread=None)
    har = make_references(LOOKBACK, samples=1, seed=SEED)[0]["har"].forecast(context).paths
    np.testing.assert_allclose(served(network, heavy).paths(context, one, SEED).paths, har, rtol=1e-6)
    ewma = make_references(LOOKBACK, samples=1, seed=SEED)[0]["ewma"].forecast(context).paths
    np.testing.assert_array_equal(Served.references(LOOKBACK).paths(context, one, SEED).paths, ewma)


def test_a_single_path_of_the_network_still_moves(network: Forecaster, context: Context) -> None:
    mostly = replace(POOL, weights=(0.7, 0.1, 0.1, 0.1), location=(0.0,))
    close = served(network, mostly).paths(context, SamplingConfig(samples=1), SEED).paths[..., CLOSE]
    returns = np.log(close / context.features[:, -1, CLOSE][:, None, None])
    assert (np.abs(returns) > 1e-4).any(axis=(1, 2)).all()


def test_settings_that_it_was_not_fitted_for_give_the_network_as_it_draws(
    network: Forecaster, context: Context
) -> None:
    other = replace(SAMPLING, temperature=0.5)
    one = served(network, POOL)
    raw = served(network, None).paths(context, other, SEED).paths
    np.testing.assert_array_equal(one.paths(context, other, SEED).paths, raw)
    assert one.shares(other) == {NETWORK: 1.0}
    assert one.shares(SAMPLING) == POOL.pool
    assert one.as_judged(other) == SAMPLING


def test_another_lookback_than_the_pool_was_fitted_for_is_refused(network: Forecaster) -> None:
    with pytest.raises(
        ModelError, match=r"candles of 1h after 70, found one fitted for 4 candles .* after 80"
    ):
        served(network, POOL).paths(context_of([past("um:DOGEUSDT", 650, 70)]), SAMPLING, SEED)


def test_a_short_lookback_leaves_har_out_and_says_so() -> None:
    short = Served.references(24)
    assert short.name == REFERENCES_MODEL
    assert dict(short.weights) == {"ewma": 0.5, "bootstrap": 0.5}
    assert short.notes == ("har was left out: it needs a lookback of 64 candles, found 24",)
    assert Served.references(LOOKBACK).notes == ()


def test_a_member_that_cannot_be_had_here_is_told(
    network: Forecaster, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kronos_model.references.find_spec", lambda name: None)
    known = replace(POOL, members=(NETWORK, "garch"), weights=(0.5, 0.5))
    with pytest.raises(ModelError, match="garch was left out: it needs the library arch"):
        served(network, known).paths(context, SAMPLING, SEED)


def test_a_network_that_learned_from_prices_alone_serves_no_volume(
    network: Forecaster, context: Context
) -> None:
    found = served(network, replace(POOL, weights=(0.0, 1.0, 0.0, 0.0)), prices_only=True)
    assert not found.paths(context, SAMPLING, SEED).paths[..., 4:].any()


def test_an_older_folder_serves_as_it_did(tmp_path: Path, context: Context) -> None:
    pair = scratch_pair(PRESETS["tiny"], tmp_path, seed=1)
    write_metadata(
        pair.predictor,
        {"interval": "1h", "lookback": 24, "horizon": HORIZON, "normaliser": Normaliser().to_dict()},
    )
    told = '{"version": 2, "levels": [0.9], "factors": [[2.0, 3.0]], "temperature": 1.0, "top_k": 0, "top_p": 1.0, '
    (pair.predictor / "calibration.json").write_text(told + '"origins": 20, "samples": 6}')
    one = Served.load(pair.tokenizer, pair.predictor, name="champion")
    forecaster = Forecaster.load(pair.tokenizer, pair.predictor)
    assert forecaster.postprocess is not None
    drawn = forecaster.paths(
        context.features,
        context.open_time,
        context.future_open_time,
        context.series,
        config=SAMPLING,
        seed=SEED,
    ).paths
    scaled = forecaster.postprocess.alone(drawn, context.features[:, -1, CLOSE])
    assert (scaled != drawn).any()
    np.testing.assert_allclose(one.paths(context, SAMPLING, SEED).paths, scaled, rtol=1e-6)
    assert dict(one.weights) == {NETWORK: 1.0}
