"""Forecasts in prices."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kronos_model.config import PRESETS
from kronos_model.errors import DataError
from kronos_model.features import NormaliserKind, fit_state
from kronos_model.forecaster import Forecaster, consistent
from kronos_model.hub import scratch_pair, write_metadata
from kronos_model.normalise import Normaliser
from kronos_model.predictor import Kronos
from kronos_model.sampling import PathSampler, SamplingConfig
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.windows import calendar_stamps

TINY = PRESETS["tiny"]
HOUR_MS = 3_600_000
START_MS = 1_717_200_000_000  # 2024-06-01 00:00 UTC
NAMES = ["um:DOGEUSDT", "spot:BTCUSDT", "spot:ETHUSDT"]


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    torch.manual_seed(0)
    return Forecaster(KronosTokenizer(TINY.tokenizer), Kronos(TINY.predictor), Normaliser())


def market(bars: int = 40) -> NDArray[np.float32]:
    """Three series (B, C, 6) of prices from 0.1 to 60,000."""
    draw = np.random.default_rng(1)
    level = np.array([0.1, 60_000.0, 3_000.0])[:, None]
    close = level * np.exp(draw.normal(0, 0.01, (3, bars)).cumsum(axis=1))
    opened = close * np.exp(draw.normal(0, 0.005, (3, bars)))
    high, low = np.maximum(opened, close) * 1.002, np.minimum(opened, close) * 0.998
    volume = draw.lognormal(8, 1, (3, bars))
    return np.stack([opened, high, low, close, volume, volume * close], axis=-1).astype(np.float32)


def hours(first: int, count: int, series: int = 3) -> NDArray[np.int64]:
    return np.tile(START_MS + HOUR_MS * np.arange(first, first + count, dtype=np.int64), (series, 1))


def forecast(
    forecaster: Forecaster,
    rows: slice = slice(None),
    *,
    bars: int = 40,
    samples: int = 5,
    seed: int = 1,
    skip: int = 0,
):
    return forecaster.paths(
        market(bars)[rows, skip:],
        hours(skip, bars - skip)[rows],
        hours(bars, 7)[rows],
        NAMES[rows],
        samples=samples,
        config=SamplingConfig(top_p=0.95),
        seed=seed,
    )


def test_every_path_is_a_possible_market(forecaster: Forecaster) -> None:
    paths = forecast(forecaster).paths
    assert paths.shape == (3, 5, 7, 6)
    assert paths.dtype == np.float32
    opened, high, low, close = np.moveaxis(paths[..., :4], -1, 0)
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    assert (low > 0).all()
    assert (paths[..., 4:] >= 0).all()
    levels = np.median(paths[..., 3], axis=(1, 2)) / market()[:, -1, 3]
    assert ((levels > 0.5) & (levels < 2)).all()  # each series at its own price


def test_bars_are_repaired_one_by_one_and_counted() -> None:
    good = [10.0, 12.0, 9.0, 11.0, 5.0, 50.0]
    crossed = [10.0, 9.5, 10.5, 11.0, 5.0, 50.0]
    negative = [10.0, 12.0, -1.0, 11.0, -3.0, -30.0]
    raw = torch.tensor([[[good, crossed], [negative, good]]])  # (1, 2, 2, 6)
    fixed, broken = consistent(raw, last_close=torch.tensor([10.0]))
    assert broken.tolist() == [[[False, True], [True, False]]]
    assert fixed[0, 0, 0].tolist() == good
    assert fixed[0, 0, 1].tolist() == [10.0, 11.0, 9.5, 11.0, 5.0, 50.0]
    torch.testing.assert_close(fixed[0, 1, 0], torch.tensor([10.0, 12.0, 1e-5, 11.0, 0.0, 0.0]))


@pytest.mark.parametrize("column", range(6))
def test_a_bar_with_one_number_below_zero_counts_as_broken(column: int) -> None:
    bar = [10.0, 12.0, 9.0, 11.0, 5.0, 50.0]
    bar[column] = -1e-3
    fixed, broken = consistent(torch.tensor([[[bar]]]), last_close=torch.tensor([10.0]))
    assert broken.tolist() == [[[True]]]
    assert (fixed >= 0).all()


def test_the_violation_rate_is_that_of_the_raw_paths(forecaster: Forecaster) -> None:
    found = forecast(forecaster)
    context = torch.from_numpy(market())
    scale = forecaster.normaliser.measure(context, NAMES)
    assert found.violation_rate.shape == (3,)
    assert ((found.violation_rate > 0) & (found.violation_rate <= 1)).all()
    stamps = [
        torch.from_numpy(calendar_stamps(t.ravel()).reshape(3, -1, 5)) for t in (hours(0, 40), hours(40, 7))
    ]
    greedy = SamplingConfig(temperature=0)
    normalised = PathSampler(forecaster.tokenizer, forecaster.predictor).paths(
        forecaster.normaliser.forward(context, scale),
        *stamps,
        config=greedy,
        samples=1,
        generator=torch.Generator(),
        max_context=512,
    )
    raw = forecaster.normaliser.inverse(normalised, scale).numpy()
    naive = []
    for series in raw:
        naive.append(0)
        for bar in series.reshape(-1, 6).tolist():
            opened, high, low, close, volume, amount = bar
            wrong = high < max(opened, close) or low > min(opened, close) or min(bar[:4]) <= 0
            naive[-1] += wrong or volume < 0 or amount < 0
    ours = forecaster.paths(market(), hours(0, 40), hours(40, 7), NAMES, samples=3, config=greedy, seed=0)
    assert ours.violation_rate.tolist() == pytest.approx([count / 7 for count in naive])
    assert np.allclose(ours.paths[:, :, :, 3], raw[..., 3], rtol=1e-6)


def test_a_series_is_forecast_alike_alone_and_in_a_batch(forecaster: Forecaster) -> None:
    together = forecast(forecaster).paths
    for row in range(3):
        alone = forecast(forecaster, slice(row, row + 1)).paths
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4)


def test_the_seed_decides(forecaster: Forecaster) -> None:
    assert np.array_equal(forecast(forecaster, seed=3).paths, forecast(forecaster, seed=3).paths)
    assert not np.array_equal(forecast(forecaster, seed=3).paths, forecast(forecaster, seed=4).paths)


def test_series_that_look_alike_draw_paths_of_their_own(forecaster: Forecaster) -> None:
    past = np.repeat(market()[:1], 3, axis=0)
    found = forecaster.paths(
        past, hours(0, 40), hours(40, 7), NAMES, config=SamplingConfig(samples=4), seed=1
    )
    assert not np.array_equal(found.paths[0], found.paths[1])
    assert not np.array_equal(found.paths[1], found.paths[2])


def test_bars_beyond_the_context_count_for_nothing(forecaster: Forecaster) -> None:
    short = Forecaster(forecaster.tokenizer, forecaster.predictor, Normaliser(), max_context=16)
    np.testing.assert_array_equal(forecast(short).paths, forecast(short, skip=24).paths)


def test_a_price_in_another_currency_gives_the_same_forecast_in_it(forecaster: Forecaster) -> None:
    found = forecast(forecaster, slice(1, 2)).paths
    scaled = market()[1:2] * np.float32(1024)  # exact in float32
    other = forecaster.paths(
        scaled,
        hours(0, 40)[1:2],
        hours(40, 7)[1:2],
        NAMES[1:2],
        samples=5,
        config=SamplingConfig(top_p=0.95),
        seed=1,
    ).paths
    np.testing.assert_allclose(other, found * 1024, rtol=1e-4)


def in_other_units(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Prices and amounts times a factor."""
    return values * np.array([factor] * 4 + [1, factor], np.float32)


@pytest.mark.parametrize("factor", [1e-8, 1e-6, 1e-4, 1e-2, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_the_unit_of_a_price_does_not_change_the_forecast(
    tmp_path: Path, kind: NormaliserKind, factor: float
) -> None:
    """From folders like upstream's (window_zscore is what they get) and like ours, each kind recorded."""
    pair = scratch_pair(TINY, tmp_path, seed=1)

    def relative(by: float) -> NDArray[np.float32]:
        bars = in_other_units(market(), by)
        if kind != "window_zscore":
            state = fit_state(kind, dict(zip(NAMES, bars, strict=True)))
            write_metadata(pair.predictor, {"normaliser": Normaliser(kind=kind, state=state).to_dict()})
        loaded = Forecaster.load(pair.tokenizer, pair.predictor)
        assert (loaded.normaliser.kind, loaded.normaliser.floor) == (kind, "relative")
        config = SamplingConfig(top_p=0.95)
        found = loaded.paths(bars, hours(0, 40), hours(40, 7), NAMES, samples=5, config=config, seed=1)
        return found.paths[..., :4] / bars[:, None, -1:, 3:4]

    usual = relative(1.0)
    assert usual.std() > 0.005
    np.testing.assert_allclose(relative(factor), usual, rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e6])
def test_a_market_that_stands_still_is_forecast_to_stand_still(forecaster: Forecaster, factor: float) -> None:
    bars = np.full((1, 40, 6), 0.3, np.float32) * np.float32(factor)
    bars[..., 4:] = 0.0
    found = forecaster.paths(
        bars, hours(0, 40, 1), hours(40, 7, 1), NAMES[:1], samples=5, config=SamplingConfig(), seed=1
    ).paths
    np.testing.assert_allclose(found[..., :4], bars[0, 0, 0], rtol=1e-5)
    assert (found[..., 4:] < 1e-9).all()


def test_upstream_s_formula_is_one_switch_away_and_recorded(tmp_path: Path) -> None:
    pair = scratch_pair(TINY, tmp_path, seed=1)
    switched = Normaliser(floor="upstream")
    chosen = Forecaster.load(pair.tokenizer, pair.predictor, normaliser=switched)
    write_metadata(pair.predictor, {"normaliser": switched.to_dict()})
    recorded = Forecaster.load(pair.tokenizer, pair.predictor)
    written_before = {"kind": "window_zscore", "clip": 5.0, "state": {}}
    write_metadata(pair.predictor, {"normaliser": written_before})
    old = Forecaster.load(pair.tokenizer, pair.predictor)
    assert chosen.normaliser == recorded.normaliser == old.normaliser == switched
    np.testing.assert_array_equal(forecast(recorded).paths, forecast(old).paths)
    assert not np.array_equal(
        forecast(old).paths,
        forecast(Forecaster.load(pair.tokenizer, pair.predictor, normaliser=Normaliser())).paths,
    )


def test_a_saved_pair_brings_its_settings(tmp_path: Path) -> None:
    pair = scratch_pair(TINY, tmp_path, seed=1)
    plain = Forecaster.load(pair.tokenizer, pair.predictor)
    assert (plain.max_context, plain.s2_decode, plain.normaliser) == (512, "trained", Normaliser())
    rows = {name: market()[i] for i, name in enumerate(NAMES)}
    normaliser = Normaliser(kind="global_robust", clip=4.0, state=fit_state("global_robust", rows))
    write_metadata(
        pair.predictor,
        {"part": "predictor", "max_context": 64, "s2_decode": "upstream", "normaliser": normaliser.to_dict()},
    )
    loaded = Forecaster.load(pair.tokenizer, pair.predictor)
    assert (loaded.max_context, loaded.s2_decode) == (64, "upstream")
    assert loaded.normaliser == normaliser
    assert not loaded.predictor.training
    overridden = Forecaster.load(pair.tokenizer, pair.predictor, s2_decode="trained", max_context=32)
    assert (overridden.max_context, overridden.s2_decode) == (32, "trained")
    assert not np.array_equal(forecast(loaded).paths, forecast(plain).paths)


def test_the_past_must_be_whole_and_match(forecaster: Forecaster) -> None:
    past = market()
    arguments = {"config": SamplingConfig(), "seed": 0, "samples": 1}
    with pytest.raises(DataError, match=r"features must be \(B, C, 6\) and open times"):
        forecaster.paths(past, hours(0, 39), hours(40, 7), NAMES, **arguments)
    with pytest.raises(DataError, match="must be float32, found float64"):
        forecaster.paths(past.astype(np.float64), hours(0, 40), hours(40, 7), NAMES, **arguments)
    for close in (0.0, -1.0):
        worthless = market()
        worthless[1, -1, 3] = close
        with pytest.raises(DataError, match="the last close must be above 0, found one that is not"):
            forecaster.paths(worthless, hours(0, 40), hours(40, 7), NAMES, **arguments)
    past[1, 3, 2] = np.nan
    with pytest.raises(DataError, match="features must be finite"):
        forecaster.paths(past, hours(0, 40), hours(40, 7), NAMES, **arguments)


def test_a_model_trained_on_prices_alone_does_not_look_at_volumes(forecaster: Forecaster) -> None:
    alone = Forecaster(forecaster.tokenizer, forecaster.predictor, forecaster.normaliser, prices_only=True)
    features, without = market(), market()
    without[..., 4:] = 0.0
    asked = (hours(0, 40), hours(40, 7), NAMES)
    settings = SamplingConfig(samples=3)
    found = alone.paths(features, *asked, config=settings, seed=1).paths
    np.testing.assert_array_equal(found, forecaster.paths(without, *asked, config=settings, seed=1).paths)
    assert (features[..., 4:] > 0).all()  # the caller's array is left as it was
