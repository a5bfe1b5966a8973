"""Reading datasets back: batches equal naive slices, whatever the order, the process or the split."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from kronos_model.errors import DataError
from kronos_model.features import NormaliserKind
from kronos_model.tokens import normalised
from kronos_model.windows import FEATURES, WindowDataset, calendar_stamps
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, START_MS, build, make_candles, real_candles

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def candles():
    return {
        "um:AAAUSDT": make_candles(500, seed=1, missing=[77]),
        "spot:BBBUSDT": make_candles(400, seed=2, start_ms=START_MS + 90 * HOUR_MS, without_amount=[5]),
    }


@pytest.fixture(scope="module")
def folder(candles, tmp_path_factory):
    config = DatasetConfig(lookback=12, horizon=4, normaliser="global_robust", clip=4.0)
    return build(candles, config, tmp_path_factory.mktemp("datasets")).path


@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_equals_naive_slices_of_the_candles(folder, candles, split):
    dataset = WindowDataset.open(folder)
    last = dataset.count(split) - 1
    indices = np.concatenate([[last, 0], np.random.default_rng(0).integers(0, last, 38)])
    batch = dataset.batch(split, indices)
    assert batch.features.shape == (40, 16, 6)
    assert batch.features.dtype == torch.float32
    assert batch.stamps.shape == (40, 16, 5)
    for row, index in enumerate(indices):
        series, start = dataset.locations(split)[index].tolist()
        name = dataset.series[series]
        frame = candles[name][start : start + 16]
        amount = frame["quote_volume"].fill_null(
            frame["volume"] * (frame["open"] + frame["high"] + frame["low"] + frame["close"]) / 4
        )
        expected = np.stack(
            [*(frame[column].to_numpy() for column in FEATURES[:5]), amount.to_numpy()], axis=1
        )
        np.testing.assert_allclose(batch.features[row].numpy(), expected, rtol=1e-7)
        assert batch.series[row] == name
        times = frame["open_time"].dt.epoch("ms").to_numpy()
        np.testing.assert_array_equal(batch.open_time[row], times)
        np.testing.assert_array_equal(batch.stamps[row].numpy(), calendar_stamps(times))
        moments = frame["open_time"].to_list()
        assert batch.stamps[row, :, 1].tolist() == [moment.hour for moment in moments]


def test_a_window_is_a_pure_function_of_its_index(folder):
    dataset = WindowDataset.open(folder)
    alone = dataset.batch("train", [17])
    among = WindowDataset.open(folder).batch("train", [3, 99, 17, 17])
    for row in (2, 3):
        assert torch.equal(alone.features[0], among.features[row])
        assert torch.equal(alone.stamps[0], among.stamps[row])


def test_a_batch_is_a_copy_that_cannot_touch_the_dataset(folder):
    dataset = WindowDataset.open(folder)
    before = dataset.batch("train", [0]).features.clone()
    dataset.batch("train", [0]).features.zero_()
    assert torch.equal(dataset.batch("train", [0]).features, before)


def test_worker_processes_see_the_same_windows(folder):
    """Opened anew in another process, as a loader's worker does, each index means the same window."""
    script = (
        "import sys; from kronos_model.windows import WindowDataset; from pathlib import Path;"
        "b = WindowDataset.open(Path(sys.argv[1])).batch('validation', [5, 0]);"
        "sys.stdout.buffer.write(b.features.numpy().tobytes() + b.open_time.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    here = WindowDataset.open(folder).batch("validation", [5, 0])
    assert done.stdout == here.features.numpy().tobytes() + here.open_time.tobytes()


def test_the_dataset_says_what_the_manifest_says(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    dataset = WindowDataset.open(folder)
    assert dataset.manifest == manifest
    assert (dataset.lookback, dataset.horizon, dataset.length) == (12, 4, 16)
    assert dataset.interval_ms == HOUR_MS
    assert dataset.series == ("spot:BBBUSDT", "um:AAAUSDT")
    assert {split: dataset.count(split) for split in SPLITS} == manifest["windows"]
    assert (dataset.normaliser.kind, dataset.normaliser.clip) == ("global_robust", 4.0)


def test_an_index_out_of_range_is_an_error_and_no_window_wraps(folder):
    dataset = WindowDataset.open(folder)
    with pytest.raises(IndexError):
        dataset.batch("test", [dataset.count("test")])


def test_an_empty_batch_has_the_right_shapes(folder):
    batch = WindowDataset.open(folder).batch("train", [])
    assert (batch.features.shape, batch.stamps.shape) == ((0, 16, 6), (0, 16, 5))
    assert (batch.series, batch.open_time.shape) == ([], (0, 16))


@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_rewriting_the_future_leaves_every_normalised_lookback_of_a_dataset_alone(candles, tmp_path, kind):
    """Built twice, once with all candles from the test border on changed: no earlier input moves by a bit."""
    config = DatasetConfig(lookback=12, horizon=4, normaliser=kind)
    first = WindowDataset.open(build(candles, config, tmp_path).path)
    border = first.manifest["test_from_ms"]
    changed = {}
    for name, frame in candles.items():
        late = (frame["open_time"].dt.epoch("ms") >= border).to_numpy()
        factor = np.where(late, 3.0, 1.0)
        numbers = ["open", "high", "low", "close", "volume", "quote_volume"]
        changed[name] = frame.with_columns([frame[column] * factor for column in numbers])
    second = WindowDataset.open(build(changed, config, tmp_path).path)
    moved = 0
    for split in SPLITS:
        indices = np.arange(first.count(split))
        one, other = first.batch(split, indices), second.batch(split, indices)
        np.testing.assert_array_equal(one.open_time, other.open_time)
        inputs = []
        for dataset, batch in ((first, one), (second, other)):
            context = batch.features[:, :12]
            inputs.append(
                dataset.normaliser.forward(context, dataset.normaliser.measure(context, batch.series))
            )
        early = torch.from_numpy(one.open_time[:, 11] < border)
        assert torch.equal(inputs[0][early], inputs[1][early])
        moved += int((one.features != other.features).any(dim=(1, 2)).sum())
    assert moved  # the change did reach some windows


@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e6])
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_a_dataset_in_other_units_is_read_the_same_and_cut_the_same(candles, tmp_path, kind, factor):
    config = DatasetConfig(lookback=12, horizon=4, normaliser=kind, clip=3.0)
    columns = ["open", "high", "low", "close", "quote_volume"]
    moved = {
        name: frame.with_columns([frame[column] * factor for column in columns])
        for name, frame in candles.items()
    }
    one, other = (WindowDataset.open(build(made, config, tmp_path).path) for made in (candles, moved))
    for split in SPLITS:
        indices = np.arange(one.count(split))
        read = [normalised(data, data.batch(split, indices), torch.device("cpu")) for data in (one, other)]
        torch.testing.assert_close(read[1], read[0], rtol=0, atol=1e-3)
    shares = [[entry["clipped"] for entry in data.manifest["series"]] for data in (one, other)]
    for before, after in zip(*shares, strict=True):
        for split in SPLITS:
            assert after[split] == pytest.approx(before[split], abs=1e-3)


def test_a_folder_that_is_not_a_complete_dataset_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"expected a complete dataset at .*build the dataset again"):
        WindowDataset.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "windows" / "test.npy").unlink()
    with pytest.raises(DataError, match=r"windows/test\.npy, found none that can be read"):
        WindowDataset.open(copy)


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 6), np.float32), np.zeros((499, 6), np.float64), np.zeros((499, 5), np.float32)],
    ids=["short", "wide", "narrow"],
)
def test_an_array_that_differs_from_the_manifest_is_refused(folder, tmp_path, array):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    np.save(copy / "series" / "um-AAAUSDT-1h" / "features.npy", array)
    with pytest.raises(DataError, match=r"expected float32 \(499, 6\) in .*features\.npy, found"):
        WindowDataset.open(copy)


def test_a_pickled_array_is_never_loaded(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "windows" / "train.npy").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(DataError, match=r"train\.npy"):
        WindowDataset.open(copy)


def test_a_manifest_of_another_version_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(DataError, match=r"version 1 at .*, found version 2"):
        WindowDataset.open(copy)


def test_building_a_dataset_needs_no_torch():
    script = (
        "import sys, storage.dataset, kronos_model.features as f;"
        "assert f.calendar_stamps and f.fit_state; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_real_windows_normalise_to_finite_values_and_back(shared_data, tmp_path):
    names = ("um:DOGEUSDT", "spot:BTCUSDT")
    built = build({name: real_candles(shared_data, name) for name in names}, DatasetConfig(), tmp_path)
    dataset = WindowDataset.open(built.path)
    for split in SPLITS:
        batch = dataset.batch(split, np.linspace(0, dataset.count(split) - 1, 16).astype(int))
        assert (batch.open_time[:, 1:] - batch.open_time[:, :-1] == HOUR_MS).all()
        context = batch.features[:, : dataset.lookback]
        scale = dataset.normaliser.measure(context, batch.series)
        z = dataset.normaliser.forward(context, scale)
        assert torch.isfinite(z).all()
        assert z.mean(dim=1).abs().max() < 0.5
        kept = z.abs() < 5
        back = dataset.normaliser.inverse(z, scale)
        step = (
            scale.location.abs() + 5 * scale.scale
        ) * 1e-6  # float32: relative to the largest number involved
        assert ((back - context).abs() <= step)[kept].all()


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_candle_of_a_split_is_the_last_that_one_of_its_windows_holds(folder, split):
    dataset = WindowDataset.open(folder)
    batch = dataset.batch(split, np.arange(dataset.count(split)))
    assert dataset.last_ms(split) == batch.open_time.max()
