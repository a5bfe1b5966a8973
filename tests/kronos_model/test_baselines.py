"""Baselines against what they are defined as, and against what they must not do."""

import math
from dataclasses import fields

import numpy as np
import pytest

from kronos_model.context import Context, history_bars
from kronos_model.evaluation.baselines import RandomWalkWithDrift, SeasonalNaive, make_baselines
from kronos_model.evaluation.competitors import LastValue
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.references import BlockBootstrap, EwmaCone
from kronos_model.volatility import EWMA_DECAY

B, C, K, H = 3, 20, 60, 8
HOUR_MS = 3_600_000
SERIES = ["um:DOGEUSDT", "um:BTCUSDT", "spot:BTCUSDT"]


def make_context(rows: slice = slice(None), *, young: int = 0) -> Context:
    """Three random walks; the first `young` closes of the first one's history lie before its listing."""
    rng = np.random.default_rng(1)
    history = 100 * np.exp(rng.normal(0, 0.01, (B, K)).cumsum(axis=1)).astype(np.float32).astype(np.float64)
    close = history[:, -C:, None]
    features = np.concatenate([close, close * 1.01, close * 0.99, close, close * 7, close * 700], axis=2)
    history[0, :young] = np.nan
    times = np.arange(C + H) * HOUR_MS + 1_700_000_000_000
    return Context(
        features=features.astype(np.float32)[rows],
        open_time=np.tile(times[:C], (B, 1))[rows],
        future_open_time=np.tile(times[C:], (B, 1))[rows],
        series=SERIES[rows],
        history=history[rows],
    )


SAMPLED = (EwmaCone(samples=40, seed=3), BlockBootstrap(samples=40, seed=3))
ALL = (*SAMPLED, LastValue(), RandomWalkWithDrift(), SeasonalNaive(name="seasonal", bars=5))


def closes(competitor, context: Context) -> np.ndarray:
    return competitor.forecast(context).paths[..., 3].astype(np.float64)


def test_drift_goes_on_along_the_line_from_the_first_to_the_last_close():
    context = make_context()
    found = closes(RandomWalkWithDrift(), context)
    for b in range(B):
        first, last = (float(context.features[b, at, 3]) for at in (0, -1))
        for h in range(H):
            expected = last * (last / first) ** ((h + 1) / (C - 1))
            assert found[b, :, h] == pytest.approx(expected, rel=1e-6)


def test_seasonal_naive_repeats_the_last_whole_season():
    context = make_context()
    found = closes(SeasonalNaive(name="seasonal", bars=5), context)
    for b in range(B):
        for h in range(H):
            back = 5 - h % 5  # bars before the first forecast one
            assert found[b, :, h] == pytest.approx(context.history[b, K - back], rel=1e-6)


def test_seasonal_naive_repeats_the_last_close_where_the_series_is_younger_than_a_season():
    context = make_context(young=K - 2)
    found = closes(SeasonalNaive(name="seasonal", bars=5), context)[0, 0]
    last, before = context.history[0, -1], context.history[0, -2]
    np.testing.assert_allclose(found, np.resize([last, last, last, before, last], H), rtol=1e-6)


def test_the_ewma_cone_widens_with_the_root_of_time_and_has_the_volatility_of_the_loop():
    context, cone = make_context(), EwmaCone(samples=20_000, seed=3)
    spread = np.log(closes(cone, context)).std(axis=1)  # (B, H)
    for b in range(B):
        returns = [math.log(y / x) for x, y in zip(context.history[b], context.history[b, 1:], strict=False)]
        weights = [EWMA_DECAY**age for age in range(len(returns))]
        squares = sum(w * r * r for w, r in zip(weights, reversed(returns), strict=True))
        sigma = math.sqrt(squares / sum(weights))
        expected = [sigma * math.sqrt(h + 1) for h in range(H)]
        np.testing.assert_allclose(spread[b], expected, rtol=0.03)


def test_the_block_bootstrap_draws_stretches_of_past_returns_less_their_mean():
    context = make_context()
    paths = np.log(BlockBootstrap(samples=200, seed=3).forecast(context).paths[..., 3].astype(np.float64))
    steps = np.diff(paths, axis=-1)
    for b in range(B):
        past = np.diff(np.log(context.history[b]))
        past = past - past.mean()
        at = np.abs(steps[b][..., None] - past).argmin(axis=-1)
        np.testing.assert_allclose(past[at], steps[b], atol=2e-6)  # paths are float32
        goes_on = (np.diff(at, axis=-1) % len(past)) == 1
        assert goes_on.mean() == pytest.approx(1 - 1 / 24, abs=0.03)


def test_a_young_series_is_bootstrapped_and_measured_from_its_own_candles_alone():
    young, old = make_context(young=K - 10), make_context()
    past = np.diff(np.log(old.history[0, -10:]))
    steps = np.diff(np.log(closes(BlockBootstrap(samples=50, seed=3), young)[0]), axis=-1)
    gap = np.abs(steps[..., None] - (past - past.mean())).min(axis=-1)
    assert gap.max() < 2e-6
    assert np.isfinite(closes(EwmaCone(samples=5, seed=3), young)).all()
    np.testing.assert_array_equal(closes(SAMPLED[0], young)[1:], closes(SAMPLED[0], old)[1:])


@pytest.mark.parametrize("competitor", ALL, ids=lambda one: one.name)
def test_bars_are_consistent_and_start_at_the_last_close(competitor):
    context = make_context()
    paths = competitor.forecast(context).paths
    opened, high, low, close, volume, amount = np.moveaxis(paths, -1, 0)
    assert paths.dtype == np.float32
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    np.testing.assert_allclose(opened[:, :, 0], np.tile(context.features[:, -1:, 3], opened.shape[1]))
    np.testing.assert_allclose(volume, np.broadcast_to(context.features[:, -1, 4, None, None], volume.shape))
    np.testing.assert_allclose(amount, np.broadcast_to(context.features[:, -1, 5, None, None], amount.shape))


@pytest.mark.parametrize("competitor", ALL, ids=lambda one: one.name)
def test_a_forecast_depends_on_its_own_row_alone_and_is_always_the_same(competitor):
    whole = competitor.forecast(make_context()).paths
    np.testing.assert_array_equal(competitor.forecast(make_context()).paths, whole)
    for row in range(B):
        alone = competitor.forecast(make_context(slice(row, row + 1))).paths
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("competitor", SAMPLED, ids=lambda one: one.name)
def test_series_origins_and_seeds_draw_differently(competitor):
    context = make_context()
    same = Context(
        **{
            f.name: np.repeat(v[:1], B, 0) if isinstance(v := getattr(context, f.name), np.ndarray) else v
            for f in fields(Context)
        }
    )
    drawn = closes(competitor, same)
    assert (drawn[0] != drawn[1]).any()
    later = Context(
        **{f.name: getattr(same, f.name) for f in fields(Context)} | {"open_time": same.open_time + HOUR_MS}
    )
    assert (closes(competitor, later) != drawn).any()
    assert (closes(type(competitor)(samples=40, seed=4), same) != drawn).any()


def test_baselines_that_cannot_be_had_are_left_out_in_a_sentence():
    config = EvaluationConfig()
    made, notes = make_baselines(
        config, interval_ms=HOUR_MS, lookback=64, history=history_bars(64, HOUR_MS), seed=0
    )
    assert [one.name for one in made] == ["last_value", *config.baselines, "har"]  # the references, each once
    assert notes == []
    assert {one.name: one.bars for one in made if isinstance(one, SeasonalNaive)} == {
        "seasonal_24h": 24,
        "seasonal_7d": 168,
    }
    made, notes = make_baselines(
        config, interval_ms=24 * HOUR_MS, lookback=64, history=history_bars(64, 24 * HOUR_MS), seed=0
    )
    assert [one.name for one in made if "seasonal" in one.name] == ["seasonal_7d"]
    assert notes == ["seasonal_24h was left out: a season is not two or more whole candles"]
    made, notes = make_baselines(
        config, interval_ms=1000, lookback=64, history=history_bars(64, 1000), seed=0
    )
    assert "a season has 86400 candles, 64 are kept in mind" in notes[0]
    short = EvaluationConfig(baselines=("har",))
    made, notes = make_baselines(short, interval_ms=HOUR_MS, lookback=63, history=168, seed=0)
    assert [one.name for one in made] == ["last_value", "ewma", "bootstrap"]
    assert notes == ["har was left out: it needs a lookback of 64 candles, found 63"]
    made, _ = make_baselines(
        EvaluationConfig(baselines=()), interval_ms=HOUR_MS, lookback=64, history=168, seed=0, members=()
    )
    assert [one.name for one in made] == ["last_value"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (("crystal_ball",), r"baselines: expected any of drift\|.*, found \('crystal_ball',\)"),
        (("ewma", "ewma"), "baselines must differ, found ewma, ewma"),
    ],
)
def test_unknown_and_repeated_baselines_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvaluationConfig(baselines=wrong)
