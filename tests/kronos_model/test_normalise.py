"""Normalisers: upstream's numbers, an inverse, and statistics that never see a bar after the lookback."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from kronos_model.errors import DataError
from kronos_model.features import Floor, NormaliserKind, calendar_stamps, fit_state
from kronos_model.normalise import Normaliser, Scale
from tests.support.datasets import HOUR_MS, START_MS, make_candles

LOOKBACK, HORIZON = 40, 12
NAMES = ["um:AAAUSDT", "um:BBBUSDT", "um:AAAUSDT"]


def on_rows(kind: NormaliserKind, clip: float, rows: dict[str, np.ndarray]) -> Normaliser:
    return Normaliser(kind=kind, clip=clip, state=fit_state(kind, rows))


def rows(seed: int, count: int = 500) -> np.ndarray:
    columns = ["open", "high", "low", "close", "volume", "quote_volume"]
    return make_candles(count, seed=seed).select(columns).to_numpy().astype(np.float32)


def windows(count: int = 3, bars: int = LOOKBACK + HORIZON) -> torch.Tensor:
    return torch.from_numpy(np.stack([rows(seed)[100 : 100 + bars] for seed in range(count)]))


def fitted(kind: str, clip: float = 5.0) -> Normaliser:
    return on_rows(kind, clip, {"um:AAAUSDT": rows(0), "um:BBBUSDT": rows(1)})


def scaled(x: np.ndarray | torch.Tensor, factor: float, volumes: float = 1.0):
    """The same market with prices and volumes in other units."""
    factors = np.array([factor] * 4 + [volumes, factor * volumes], np.float32)
    return x * (torch.from_numpy(factors) if isinstance(x, torch.Tensor) else factors)


FACTORS = [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6]


@pytest.mark.parametrize("bars", [7, 40, 400])
def test_the_switch_gives_upstream_s_normalisation(bars):
    x = windows(bars=bars).numpy()
    normaliser = Normaliser(kind="window_zscore", clip=5.0, floor="upstream")
    scale = normaliser.measure(torch.from_numpy(x), NAMES)
    ours = normaliser.forward(torch.from_numpy(x), scale).numpy()
    for one, expected in zip(ours, x, strict=True):
        # As KronosPredictor.predict has it, on one (T, 6) float32 frame.
        x_mean, x_std = np.mean(expected, axis=0), np.std(expected, axis=0)
        upstream = np.clip((expected - x_mean) / (x_std + 1e-5), -5, 5)
        np.testing.assert_allclose(one, upstream, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("floor", "factor"),
    [*(("upstream", factor) for factor in (1e-6, 1e-3, 1.0, 1e6)), ("relative", 1e4), ("relative", 1e6)],
)
def test_upstream_s_predictor_is_fed_the_same_numbers_with_the_switch_or_at_usual_prices(
    monkeypatch, floor, factor
):
    """The unmodified KronosPredictor, stopped where it would call the model; usual prices are 1,000 here."""
    import pandas as pd
    from model.kronos import KronosPredictor

    candles = make_candles(LOOKBACK + HORIZON)
    columns = ["open", "high", "low", "close", "volume", "quote_volume"]
    values = scaled(candles.select(columns).to_numpy(), factor)
    frame = pd.DataFrame(values, columns=[*columns[:5], "amount"])
    times = pd.Series(pd.to_datetime(candles["open_time"].dt.epoch("ms").to_numpy(), unit="ms"))
    seen = {}

    def generate(self, x, x_stamp, y_stamp, *rest):
        seen.update(x=x, x_stamp=x_stamp, y_stamp=y_stamp)
        return np.zeros((1, HORIZON, 6), np.float32)

    monkeypatch.setattr(KronosPredictor, "generate", generate)
    predictor = KronosPredictor(torch.nn.Identity(), torch.nn.Identity(), device="cpu")
    predictor.predict(frame[:LOOKBACK], times[:LOOKBACK], times[LOOKBACK:], HORIZON, verbose=False)

    context = torch.tensor(frame[:LOOKBACK].to_numpy(np.float32))[None]
    normaliser = Normaliser(floor=floor)
    ours = normaliser.forward(context, normaliser.measure(context, ["um:AAAUSDT"]))
    np.testing.assert_allclose(ours.numpy(), seen["x"], rtol=2e-5, atol=2e-5)
    stamps = calendar_stamps(candles["open_time"].dt.epoch("ms").to_numpy())
    np.testing.assert_array_equal(stamps[:LOOKBACK], seen["x_stamp"][0])
    np.testing.assert_array_equal(stamps[LOOKBACK:], seen["y_stamp"][0])


@pytest.mark.parametrize("bars", [7, 40])
def test_window_robust_is_median_and_scaled_mad(bars):
    x = windows(bars=bars)
    scale = Normaliser(kind="window_robust").measure(x, NAMES)
    for index, one in enumerate(x.numpy().astype(np.float64)):
        median = np.median(one, axis=0)
        np.testing.assert_allclose(scale.location[index, 0], median, rtol=1e-6)
        np.testing.assert_allclose(
            scale.scale[index, 0], 1.4826 * np.median(np.abs(one - median), axis=0), rtol=1e-5
        )


def test_global_robust_uses_each_series_training_rows():
    scale = fitted("global_robust").measure(windows(), NAMES)
    for index, seed in enumerate([0, 1, 0]):
        wide = rows(seed).astype(np.float64)
        median = np.median(wide, axis=0)
        np.testing.assert_allclose(scale.location[index, 0], median, rtol=1e-6)
        np.testing.assert_allclose(
            scale.scale[index, 0], 1.4826 * np.median(np.abs(wide - median), axis=0), rtol=1e-6
        )
    assert scale.location.shape == scale.scale.shape == (3, 1, 6)


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
@pytest.mark.parametrize("bar", range(LOOKBACK, LOOKBACK + HORIZON))
def test_no_bar_after_the_lookback_changes_the_normalised_lookback(kind, bar):
    normaliser = fitted(kind)
    x, moved = windows(), windows()
    moved[:, bar] *= 1000.0

    def lookback(values):
        scale = normaliser.measure(values[:, :LOOKBACK], NAMES)
        return normaliser.forward(values, scale)[:, :LOOKBACK]

    assert torch.equal(lookback(x), lookback(moved))


@pytest.mark.parametrize("kind", ["window_zscore", "window_robust"])
def test_a_bar_of_the_lookback_does_change_the_window_statistics(kind):
    x, moved = windows(), windows()
    moved[:, LOOKBACK // 2] *= 3.0
    normaliser = fitted(kind)
    before, after = (normaliser.measure(values[:, :LOOKBACK], NAMES) for values in (x, moved))
    assert not torch.equal(before.scale, after.scale)


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_a_window_s_statistics_do_not_depend_on_its_batch(kind):
    normaliser = fitted(kind)
    x = windows(64)[:, :LOOKBACK]
    names = ["um:AAAUSDT"] * 64
    together = normaliser.measure(x, names)
    for index in range(64):
        alone = normaliser.measure(x[index : index + 1], names[:1])
        assert torch.equal(alone.location[0], together.location[index])
        assert torch.equal(alone.scale[0], together.scale[index])


@pytest.mark.parametrize("kind", ["window_zscore", "window_robust"])
def test_statistics_of_large_numbers_that_hardly_move_are_exact(kind):
    """Amounts of 1e10 that move by 1e-6 of it: summed in float32, the mean is off by more than the spread."""
    column = (1e10 + 1e4 * np.arange(400) % 7e4).astype(np.float32)
    x = np.tile(column[:, None], (1, 6))
    scale = Normaliser(kind=kind).measure(torch.from_numpy(x)[None], ["um:AAAUSDT"])
    wide = column.astype(np.float64)
    median = np.median(wide)
    expected = {
        "window_zscore": (wide.mean(), wide.std()),
        "window_robust": (median, 1.4826 * np.median(np.abs(wide - median))),
    }[kind]
    np.testing.assert_array_equal(scale.location[0, 0], np.float32(expected[0]))
    np.testing.assert_allclose(scale.scale[0, 0], expected[1], rtol=1e-6)


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_inverse_undoes_forward_where_nothing_was_clipped(kind):
    normaliser = fitted(kind)
    x = windows()
    scale = normaliser.measure(x[:, :LOOKBACK], NAMES)
    z = normaliser.forward(x, scale)
    kept = z.abs() < normaliser.clip
    assert kept.float().mean() > 0.9
    step = (scale.location.abs() + 5 * scale.scale) * 1e-6  # float32: relative to the largest number involved
    assert ((normaliser.inverse(z, scale) - x).abs() <= step)[kept].all()


@pytest.mark.parametrize("clip", [0.5, 5.0])
def test_forward_clips_at_the_limit(clip):
    normaliser = Normaliser(clip=clip)
    x = windows()
    x[:, 10] *= 50
    z = normaliser.forward(x, normaliser.measure(x[:, :LOOKBACK], NAMES))
    assert z.abs().max() == clip


def test_sample_paths_invert_like_single_windows():
    normaliser = Normaliser()
    scale = normaliser.measure(windows()[:, :LOOKBACK], NAMES)
    z = torch.randn(3, 5, HORIZON, 6, generator=torch.Generator().manual_seed(0))
    together = normaliser.inverse(z, scale)
    for sample in range(5):
        assert torch.equal(together[:, sample], normaliser.inverse(z[:, sample], scale))
    assert torch.equal(normaliser.forward(together, scale)[:, 2], normaliser.forward(together[:, 2], scale))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_the_unit_of_a_price_does_not_change_what_the_model_reads_nor_what_comes_back(kind, factor):
    """Volumes in other units too, up to amounts of 1e12."""
    x, volumes = windows(), 1e6 / factor
    moved = scaled(x, factor, volumes)
    made = {name: rows(seed) for seed, name in enumerate(NAMES[:2])}
    one = on_rows(kind, 5.0, made)
    other = on_rows(kind, 5.0, {name: scaled(values, factor, volumes) for name, values in made.items()})
    scales = [n.measure(v[:, :LOOKBACK], NAMES) for n, v in ((one, x), (other, moved))]
    read = [n.forward(v, at) for n, v, at in zip((one, other), (x, moved), scales, strict=True)]
    torch.testing.assert_close(read[1], read[0], rtol=0, atol=1e-4)
    assert read[0].std() > 0.5
    back = [n.inverse(z, at) for n, z, at in zip((one, other), read, scales, strict=True)]
    torch.testing.assert_close(back[1], scaled(back[0], factor, volumes), rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [1e-6, 1e-4])
def test_upstream_s_formula_drowns_small_prices(factor):
    normaliser, x = Normaliser(floor="upstream"), windows()[:, :LOOKBACK]
    read = [normaliser.forward(v, normaliser.measure(v, NAMES))[..., :4] for v in (x, scaled(x, factor))]
    assert read[1].std() < 0.5 * read[0].std()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_a_column_that_does_not_move_is_as_wide_as_its_level_says(kind, factor):
    still = scaled(np.full((500, 6), 0.3, np.float32), factor)
    still[:, 4] = 0.0
    normaliser = on_rows(kind, 5.0, {"um:AAAUSDT": still})
    x = torch.from_numpy(still[:LOOKBACK])[None]
    scale = normaliser.measure(x, ["um:AAAUSDT"])
    np.testing.assert_allclose(scale.scale[0, 0, :4], 1e-6 * still[0, :4], rtol=1e-5)
    assert (normaliser.forward(x, scale).abs() < 0.1).all()
    spread = normaliser.inverse(torch.full_like(x, 5.0), scale)
    np.testing.assert_allclose(spread[..., :4], x[..., :4], rtol=1e-5)
    assert (spread[..., 4] < 1e-9).all()  # nothing was traded: nothing is forecast to be
    traded = x.clone()
    traded[..., 4] = 1e12
    assert (normaliser.forward(traded, scale)[..., 4] == 5.0).all()


@pytest.mark.parametrize("floor", get_args(Floor))
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_a_market_that_does_not_move_stays_finite_and_comes_back(kind, floor):
    still = np.full((500, 6), 0.1, np.float32)
    still[:, 4:] = 0.0
    normaliser = replace(on_rows(kind, 5.0, {"um:AAAUSDT": still}), floor=floor)
    x = torch.from_numpy(still[:LOOKBACK])[None]
    scale = normaliser.measure(x, ["um:AAAUSDT"])
    z = normaliser.forward(x, scale)
    assert (scale.scale > 0).all()
    assert (z.abs() < 0.1).all()
    torch.testing.assert_close(normaliser.inverse(z, scale), x)


@pytest.mark.parametrize("kind", ["window_robust", "global_robust"])
def test_a_volume_that_is_mostly_zero_keeps_its_spikes_apart(kind):
    values = rows(0)
    values[:, 4] = 0.0
    values[::10, 4] = np.linspace(1e3, 1e4, 50)
    normaliser = on_rows(kind, 20.0, {"um:AAAUSDT": values})
    x = torch.from_numpy(values)[None]
    z = normaliser.forward(x, normaliser.measure(x, ["um:AAAUSDT"]))[0, ::10, 4]
    assert (z.diff() > 0).all()


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_a_normaliser_survives_json(kind):
    normaliser = fitted(kind, clip=3.0)
    again = Normaliser.from_dict(json.loads(json.dumps(normaliser.to_dict())))
    assert again == normaliser
    one, other = (n.measure(windows()[:, :LOOKBACK], NAMES) for n in (normaliser, again))
    assert isinstance(one, Scale)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_what_was_written_before_there_was_a_floor_reads_as_it_was_made(kind):
    old = fitted(kind).to_dict()
    del old["floor"]
    normaliser = Normaliser.from_dict(old)
    assert normaliser == replace(fitted(kind), floor="upstream")
    x = scaled(windows()[:, :LOOKBACK], 1e-7)
    scale = normaliser.measure(x, NAMES)
    wide = x.double().numpy()
    if kind == "window_zscore":
        np.testing.assert_allclose(scale.scale[:, 0], wide.std(axis=1) + 1e-5, rtol=1e-6)
    if kind == "window_robust":
        mad = np.median(np.abs(wide - np.median(wide, axis=1, keepdims=True)), axis=1)
        np.testing.assert_allclose(scale.scale[:, 0], np.maximum(1.4826 * mad, 1e-9), rtol=1e-5)
        assert (scale.scale[:, 0, :4] == 1e-9).any()
    assert Normaliser.from_dict(normaliser.to_dict()) == normaliser


def test_a_series_that_was_not_fitted_is_refused_by_name():
    with pytest.raises(DataError, match=r"fitted on um:AAAUSDT, um:BBBUSDT, found um:NEWUSDT"):
        fitted("global_robust").measure(windows(1), ["um:NEWUSDT"])


def test_global_robust_without_training_rows_of_a_series_is_refused():
    with pytest.raises(DataError, match=r"found none of um:NEWUSDT; leave the series out"):
        on_rows("global_robust", 5.0, {"um:NEWUSDT": np.empty((0, 6), np.float32)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "minmax"}, r"kind: expected window_zscore\|window_robust\|global_robust, found 'minmax'"),
        ({"floor": "none"}, r"floor: expected relative\|upstream, found 'none'"),
        ({"clip": 0.0}, r"clip: expected above 0, found 0.0; raise it"),
        ({"clip": float("nan")}, r"clip: expected float \(above 0\), found nan"),
        ({"kind": "global_robust"}, r"global_robust: expected a state of \['series'\], found \[\]"),
        ({"state": {"kind": "window_zscore"}}, r"window_zscore: expected a state of \[\], found \['kind'\]"),
    ],
)
def test_a_wrong_normaliser_is_a_value_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        Normaliser(**wrong)


def test_an_incomplete_or_foreign_dictionary_is_refused():
    with pytest.raises(DataError, match="kind, clip and state, found kind"):
        Normaliser.from_dict({"kind": "window_zscore"})
    with pytest.raises(DataError, match="kind, clip and state"):
        Normaliser.from_dict({**Normaliser().to_dict(), "epsilon": 1})


def test_stamps_are_those_of_pandas_for_any_utc_time():
    import pandas as pd

    rng = np.random.default_rng(0)
    edges = ["2020-02-29 23:59", "2021-02-28", "2023-12-31 23:59:59.999", "2024-01-01", "1969-12-31 23:59"]
    edge_ms = [pd.Timestamp(moment).value // 1_000_000 for moment in edges]
    hourly = START_MS + HOUR_MS * np.arange(24 * 400)
    milliseconds = np.concatenate([edge_ms, rng.integers(0, 2**41, 5_000), hourly]).astype(np.int64)
    moments = pd.DatetimeIndex(pd.to_datetime(milliseconds, unit="ms"))
    expected = [moments.minute, moments.hour, moments.weekday, moments.day, moments.month]
    stamps = calendar_stamps(milliseconds)
    assert stamps.dtype == np.int8
    np.testing.assert_array_equal(stamps, np.stack(expected, axis=1))


def test_stamps_keep_the_shape_of_their_times():
    times = START_MS + HOUR_MS * np.arange(12, dtype=np.int64).reshape(3, 4)
    np.testing.assert_array_equal(calendar_stamps(times)[1], calendar_stamps(times[1]))
