"""The references that may serve, and their pool."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from kronos_model.context import Context
from kronos_model.references import REFERENCES, BlockBootstrap, EwmaCone, make_references, references_pool
from kronos_model.volatility import HAR_LOOKBACK, HarRv

B, K, H, S = 2, 200, 5, 10
HOUR_MS = 3_600_000


def make_context(lookback: int = 80) -> Context:
    rng = np.random.default_rng(1)
    history = 100 * np.exp(rng.normal(0, 0.01, (B, K)).cumsum(axis=1)).astype(np.float32).astype(np.float64)
    close = history[:, -lookback:, None]
    bars = np.concatenate([close, close * 1.01, close * 0.99, close, close * 7, close * 700], axis=2)
    times = np.tile(np.arange(lookback + H) * HOUR_MS, (B, 1))
    return Context(
        features=bars.astype(np.float32),
        open_time=times[:, :lookback],
        future_open_time=times[:, lookback:],
        series=["um:A", "um:B"],
        history=history,
    )


def pool_of(context: Context, seed: int = 7) -> np.ndarray:
    """What the references that the lookback allows draw, pooled."""
    members, _ = make_references(context.features.shape[1], samples=S, seed=seed)
    return references_pool({name: one.forecast(context).paths for name, one in members.items()}).paths


def test_the_pool_deals_each_references_own_first_paths_equally():
    context = make_context()
    found = pool_of(context)
    assert found.shape == (B, S, H, 6)
    alone = {
        name: one.forecast(context).paths for name, one in make_references(80, samples=S, seed=7)[0].items()
    }
    assert tuple(alone) == REFERENCES
    for name, count in {"ewma": 4, "har": 3, "bootstrap": 3}.items():
        for path in np.swapaxes(alone[name], 0, 1)[:count]:
            assert any(np.array_equal(path, one) for one in np.swapaxes(found, 0, 1))
    np.testing.assert_array_equal(found, pool_of(context))
    assert not np.array_equal(found, pool_of(context, 8))


def test_a_series_has_the_same_paths_alone_and_among_others():
    context = make_context()
    first = replace(
        context,
        features=context.features[:1],
        open_time=context.open_time[:1],
        future_open_time=context.future_open_time[:1],
        series=context.series[:1],
        history=context.history[:1],
    )
    np.testing.assert_array_equal(pool_of(first), pool_of(context)[:1])


def test_har_is_left_out_of_a_short_lookback_and_told():
    members, notes = make_references(HAR_LOOKBACK - 1, samples=S, seed=1)
    assert list(members) == ["ewma", "bootstrap"]
    assert notes == ["har was left out: it needs a lookback of 64 candles, found 63"]
    assert make_references(HAR_LOOKBACK, samples=S, seed=1)[1] == []
    short = make_context(HAR_LOOKBACK - 1)
    assert pool_of(short).shape == (B, S, H, 6)


def test_garch_comes_where_it_is_named_and_its_library_is_there(monkeypatch):
    members, notes = make_references(80, samples=S, seed=1, names=("garch", "ewma"))
    assert (list(members), notes) == (["garch", "ewma"], [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("kronos_model.references.find_spec", lambda name: None)
    members, notes = make_references(80, samples=S, seed=1, names=("garch", "ewma"))
    assert list(members) == ["ewma"]
    assert notes == ["garch was left out: it needs the library arch, which is not installed"]


def test_each_reference_has_the_samples_and_the_seed_it_was_asked_for():
    members = make_references(80, samples=12, seed=5)[0]
    assert members == {
        "ewma": EwmaCone(samples=12, seed=5),
        "har": HarRv(samples=12, seed=5),
        "bootstrap": BlockBootstrap(samples=12, seed=5),
    }


@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_the_pool_is_the_same_in_any_unit_of_price(factor):
    context = make_context()
    bars = context.features.copy()
    bars[..., :4] *= np.float32(factor)
    other = replace(context, features=bars, history=context.history * factor)
    ours, theirs = pool_of(context), pool_of(other)
    np.testing.assert_allclose(theirs[..., :4] / factor, ours[..., :4], rtol=1e-3)


def test_a_market_that_stands_still_has_paths_that_stand_nearly_still():
    context = make_context()
    bars = np.broadcast_to(context.features[:, -1:], context.features.shape).copy()
    bars[..., :4] = 100.0
    still = replace(context, features=bars, history=np.full_like(context.history, 100.0))
    np.testing.assert_allclose(pool_of(still)[..., :4], 100.0, rtol=1e-4)
