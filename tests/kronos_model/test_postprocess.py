"""What happens to paths before they are served: what it moves, what stays joint, and what a folder says of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kronos_model.config import PRESETS
from kronos_model.errors import ModelError
from kronos_model.files import model_digest
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.pool import deal, pooled
from kronos_model.postprocess import (
    FEWEST_FOR_MEDIAN,
    NETWORK,
    PostProcess,
    Spread,
    Step,
    located,
    location_at,
)
from kronos_model.sampling_config import SamplingConfig

B, S, H = 3, 20, 6
MEMBERS = (NETWORK, "ewma", "har", "bootstrap")
WIDE = Spread(levels=(0.5, 0.9), factors=((1.5,) * H, (2.0,) * H))
LAST = np.array([100.0, 0.00001, 60_000.0])
PLAIN = PostProcess(
    horizon=H,
    lookback=24,
    interval="1h",
    temperature=0.9,
    top_k=0,
    top_p=0.95,
    location=(1.0,),
    members=MEMBERS,
    weights=(0.4, 0.3, 0.2, 0.1),
    spread=None,
    spread_alone=None,
    origins=40,
    samples=S,
    steps=(Step(name="location", kept=False, reason="not tried: so", before=None, after=1.5),),
)


def paths_of(seed: int, *, samples: int = S, drift: float = 0.0) -> np.ndarray:
    """Consistent bars (B, S, H, F)."""
    rng = np.random.default_rng(seed)
    close = LAST[:, None, None] * np.exp(drift + rng.normal(0, 0.01, (B, samples, H)).cumsum(axis=-1))
    bars = [close * 0.999, close * 1.003, close * 0.998, close, close * 0 + 5, close * 0 + seed]
    return np.stack(bars, axis=-1).astype(np.float32)


def returns_of(paths: np.ndarray) -> np.ndarray:
    return np.log(paths[..., 3].astype(np.float64) / LAST[:, None, None])


def member_paths(**changes) -> dict[str, np.ndarray]:
    return {name: paths_of(seed, **changes) for seed, name in enumerate(MEMBERS, start=1)}


@pytest.mark.parametrize("samples", [1, 2, 7, 10, 16, 30, 100])
@pytest.mark.parametrize(
    "weights", [(0.4, 0.3, 0.2, 0.1), (0.25,) * 4, (0.0, 1 / 3, 1 / 3, 1 / 3), (1, 0, 0, 0)]
)
def test_paths_are_dealt_by_weight_and_sum_to_all(weights, samples):
    found = deal(dict(zip(MEMBERS, weights, strict=True)), samples)
    assert list(found) == list(MEMBERS)
    assert sum(found.values()) == samples
    assert found == deal(dict(zip(MEMBERS, weights, strict=True)), samples)
    for name, weight in zip(MEMBERS, weights, strict=True):
        assert abs(found[name] - weight * samples) < 1
        assert weight > 0 or found[name] == 0


def test_the_largest_remainders_get_what_is_left_and_the_first_of_equal_ones():
    assert deal({"a": 0.29, "b": 0.35, "c": 0.36}, 10) == {"a": 3, "b": 3, "c": 4}
    assert deal({"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}, 10) == {"a": 3, "b": 3, "c": 2, "d": 2}
    assert deal({"a": 0.29, "b": 0.71}, 100) == {"a": 29, "b": 71}


def test_every_path_of_a_pool_is_one_members_whole_path_and_the_first_are_as_mixed_as_all():
    members = member_paths()
    dealt = {NETWORK: 10, "ewma": 6, "har": 4, "bootstrap": 0}
    found = pooled(members, dealt)
    assert found.shape == (B, S, H, 6)
    origin = found[0, :, 0, 5].astype(int)  # the amount names the member
    assert [(origin == seed).sum() for seed in (1, 2, 3, 4)] == [10, 6, 4, 0]
    for seed, name in enumerate(MEMBERS, start=1):
        np.testing.assert_array_equal(found[:, origin == seed], members[name][:, : dealt[name]])
    for first in (5, 10, 15):
        assert [
            abs((origin[:first] == seed).sum() - first * share) < 1 for seed, share in ((1, 0.5), (2, 0.3))
        ] == [
            True,
            True,
        ]


def test_the_blend_without_location_and_spread_is_the_pool():
    members = member_paths()
    np.testing.assert_array_equal(PLAIN.blend(members, LAST), pooled(members, PLAIN.deal(S)))
    ten = PLAIN.blend(members, LAST, samples=10)
    np.testing.assert_array_equal(ten, pooled(members, {NETWORK: 4, "ewma": 3, "har": 2, "bootstrap": 1}))


def test_only_the_network_loses_its_location_and_the_pool_alone_is_scaled():
    members = {name: paths_of(seed, drift=0.05) for seed, name in enumerate(MEMBERS, start=1)}
    found = replace(PLAIN, location=(0.0,)).blend(members, LAST)
    origin = found[0, :, 0, 5].astype(int)
    for seed, name in enumerate(MEMBERS[1:], start=2):
        np.testing.assert_array_equal(found[:, origin == seed], members[name][:, : (origin == seed).sum()])
    moved = located(returns_of(members[NETWORK][:, :FEWEST_FOR_MEDIAN]), np.zeros(H))
    np.testing.assert_allclose(returns_of(found[:, origin == 1]), moved[:, :8], atol=1e-6)
    both = replace(PLAIN, location=(0.0,), spread=WIDE, spread_alone=None).blend(members, LAST)
    np.testing.assert_allclose(returns_of(both), WIDE.scale(returns_of(found)), atol=1e-6)
    order = np.argsort(returns_of(found), axis=1)
    assert (np.diff(np.take_along_axis(returns_of(both), order, axis=1), axis=1) >= 0).all()


def test_a_pool_is_the_same_however_many_paths_its_network_has_drawn():
    found = replace(PLAIN, location=(0.0,), spread=WIDE)
    members = member_paths(samples=50)
    for samples, needed in ((2, 16), (S, 16), (45, 18)):
        assert found.network_paths(samples) == needed
        few = {**members, NETWORK: members[NETWORK][:, :needed]}
        np.testing.assert_array_equal(
            found.blend(members, LAST, samples=samples), found.blend(few, LAST, samples=samples)
        )
        with pytest.raises(ModelError, match=f"expected {needed} paths of network for the pool, found 1;"):
            found.blend({**members, NETWORK: members[NETWORK][:, :1]}, LAST, samples=samples)
    assert PLAIN.network_paths(S) == 8
    assert replace(found, weights=(0.0, 0.5, 0.3, 0.2)).network_paths(S) == 0


def test_the_network_alone_has_its_own_spread_after_its_location():
    paths = paths_of(1, drift=0.05)
    found = replace(PLAIN, location=(0.25,), spread_alone=WIDE).alone(paths, LAST)
    wanted = WIDE.scale(located(returns_of(paths), np.full(H, 0.25)))
    np.testing.assert_allclose(returns_of(found), wanted, atol=1e-6)
    np.testing.assert_array_equal(PLAIN.alone(paths, LAST), paths)


def test_a_location_moves_all_paths_of_a_fan_by_the_same_towards_the_last_close():
    returns = returns_of(paths_of(1, samples=400, drift=0.05))
    for kept in (0.0, 0.25, 0.75):
        moved = located(returns, np.full(H, kept))
        shift = moved - returns
        np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 400, axis=1), atol=1e-12)
        np.testing.assert_allclose(np.median(moved, axis=1), 0.05 * kept, atol=0.006)
    np.testing.assert_array_equal(located(returns, np.ones(H)), returns)


def test_a_bar_moves_as_a_whole_and_volumes_stay():
    paths = paths_of(1, drift=0.05)
    found = replace(PLAIN, location=(0.25,), spread_alone=WIDE).alone(paths, LAST)
    np.testing.assert_array_equal(found[..., 4:], paths[..., 4:])
    for column in (0, 1, 2):
        np.testing.assert_allclose(
            found[..., column] / found[..., 3], paths[..., column] / paths[..., 3], rtol=1e-6
        )
    assert found.dtype == np.float32


def test_location_is_linear_between_the_middles_of_its_stretches():
    np.testing.assert_allclose(
        location_at((0.0, 1.0), 8)[[0, 1, 2, 5, 7]], [0, 0, 0.125, 0.875, 1], atol=1e-12
    )
    np.testing.assert_array_equal(location_at((0.3,), 4), np.full(4, 0.3))
    paths = paths_of(1)
    post = replace(PLAIN, location=(0.0, 1.0))
    np.testing.assert_allclose(  # fewer steps are the first ones
        post.alone(paths[:, :, :2], LAST), post.alone(paths, LAST)[:, :, :2], rtol=1e-6
    )


def test_wild_paths_stay_finite():
    wild = paths_of(1).astype(np.float64)
    wild[..., :4] *= np.exp(np.random.default_rng(1).normal(0, 4, (B, S, H)))[..., None]
    found = replace(PLAIN, spread_alone=WIDE, location=(0.5,)).alone(wild.astype(np.float32), LAST)
    assert np.isfinite(found).all()


def test_one_path_is_what_it_was_but_for_its_location():
    paths = paths_of(1, samples=1)
    np.testing.assert_allclose(replace(PLAIN, spread_alone=WIDE).alone(paths, LAST), paths, rtol=1e-6)
    blended = replace(PLAIN, spread=WIDE).blend(member_paths(samples=1), LAST)
    assert blended.shape == (B, 1, H, 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
@pytest.mark.parametrize("name", [NETWORK, "har"])
def test_broken_paths_are_refused_by_the_members_name(name, value):
    members = member_paths()
    members[name][1, 0, 2, 3] = value
    with pytest.raises(
        ModelError, match=f"expected finite closes above 0 in the paths of {name}, found others"
    ):
        PLAIN.blend(members, LAST)


def test_a_member_without_weight_may_be_missing_and_one_with_weight_may_not():
    members = member_paths()
    without = replace(PLAIN, weights=(0.0, 0.5, 0.5, 0.0))
    given = {name: members[name] for name in ("ewma", "har")}
    np.testing.assert_array_equal(without.blend(given, LAST), without.blend(members, LAST))
    with pytest.raises(ModelError, match="expected 8 paths of network for the pool, found 0; draw as many"):
        PLAIN.blend(given, LAST)


@pytest.mark.parametrize(
    ("asked", "suits"),
    [
        ({}, True),
        ({"top_k": None}, True),
        ({"samples": 500, "precision": "bfloat16"}, True),
        ({"temperature": 1.0}, False),
        ({"top_p": 1.0}, False),
        ({"top_p": None}, False),
        ({"top_k": 5}, False),
    ],
)
def test_it_suits_the_sampling_settings_it_was_fitted_to_alone(asked, suits):
    assert PLAIN.suits(replace(PLAIN.sampling(8), **asked)) == suits
    assert PLAIN.sampling(8) == SamplingConfig(temperature=0.9, top_p=0.95, samples=8)


def test_it_is_refused_for_a_question_it_was_not_fitted_for():
    PLAIN.check_made_for(horizon=H, lookback=24, interval="1h")
    PLAIN.check_made_for(horizon=2, lookback=24, interval="1h")
    replace(PLAIN, lookback=0, interval="").check_made_for(horizon=H, lookback=99, interval="4h")
    for other in ({"horizon": H + 1}, {"lookback": 25}, {"interval": "4h"}):
        with pytest.raises(
            ModelError, match="found one fitted for 6 candles of 1h after 24; judge the model"
        ):
            PLAIN.check_made_for(**{"horizon": H, "lookback": 24, "interval": "1h", **other})


@pytest.mark.parametrize(
    "wrong",
    [
        {"location": ()},
        {"location": (1.1,)},
        {"weights": (0.5, 0.5)},
        {"weights": (0.5, 0.5, 0.5, -0.5)},
        {"weights": (0.5, 0.3, 0.2, 0.1)},
        {"members": ("ewma", NETWORK, "har", "bootstrap")},
        {"members": (NETWORK, "ewma", "ewma", "har")},
    ],
)
def test_what_is_no_post_processing_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        replace(PLAIN, **wrong)


def test_a_folder_gives_back_what_was_saved_and_another_version_is_named(tmp_path):
    assert PostProcess.load(tmp_path) is None
    post = replace(PLAIN, spread=WIDE)
    post.save(tmp_path)
    assert PostProcess.load(tmp_path) == post
    path = tmp_path / "postprocess.json"
    told = json.loads(path.read_text())
    for damaged in (
        {"version": 1},
        {**told, "weights": [1.0]},
        {**told, "spread": {"levels": [0.9, 0.5], "factors": [[1.0], [1.0]]}},
        {**told, "steps": [{"name": "location"}]},
        {**told, "version": 2},
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(ModelError, match=r"expected post-processing of version 1 in .*postprocess\.json"):
            PostProcess.load(tmp_path)
    with pytest.raises(ModelError, match=r"found something else \(version 2\); run a night"):
        PostProcess.load(tmp_path)


CALIBRATION = {
    "version": 2,
    "levels": [0.5, 0.8, 0.9],
    "factors": [[1.5] * H, [1.2] * H, [2.0] * H],
    "origins": 40,
    "samples": 16,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.9,
}


def test_a_folder_from_before_post_processing_serves_the_network_with_its_calibration(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(CALIBRATION))
    (tmp_path / "kronos_nightly.json").write_text(json.dumps({"lookback": 120, "interval": "4h"}))
    found = PostProcess.load(tmp_path)
    assert found is not None
    assert (found.pool, found.location, found.horizon) == ({NETWORK: 1.0}, (1.0,), H)
    assert (found.lookback, found.interval) == (120, "4h")
    assert found.sampling(4) == SamplingConfig(temperature=0.8, top_p=0.9, samples=4)
    assert found.spread == found.spread_alone
    assert found.spread is not None
    assert found.spread.factors[2] == (2.0,) * H
    paths = paths_of(1)
    np.testing.assert_array_equal(found.alone(paths, LAST), found.blend({NETWORK: paths}, LAST))
    PLAIN.save(tmp_path)  # the newer file counts
    assert PostProcess.load(tmp_path) == PLAIN


@pytest.mark.parametrize("wrong", [{"version": 1}, {"factors": []}, {"levels": [0.9, 0.8, 0.5]}])
def test_a_calibration_that_cannot_be_read_is_named(tmp_path, wrong):
    (tmp_path / "calibration.json").write_text(json.dumps({**CALIBRATION, **wrong}))
    with pytest.raises(ModelError, match=r"expected a calibration of version 2 in .*run a night"):
        PostProcess.load(tmp_path)


def test_post_processing_beside_a_predictor_is_loaded_with_it_and_part_of_its_digest(tmp_path):
    pair = scratch_pair(PRESETS["tiny"], tmp_path, seed=3)
    digest = model_digest(pair.predictor)
    post = replace(PLAIN, location=(0.2,), spread_alone=WIDE)
    post.save(pair.predictor)
    assert model_digest(pair.predictor) != digest
    assert Forecaster.load(pair.tokenizer, pair.predictor).postprocess == post
