"""Datasets: exact splits, no bar shared, no window over a hole, a digest that means the content."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kronos_model.features import calendar_stamps, fit_state
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig, build_dataset, load_manifest
from storage.errors import DatasetError, StorageError
from storage.schema import SeriesKey
from storage.splits import SplitRule, find_segments, rows_needed, split_windows
from tests.support.datasets import HOUR_MS, START_MS, build, make_candles, real_candles

SPLITS = ("train", "validation", "test")
SMALL = DatasetConfig(lookback=12, horizon=4)
ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> tuple[dict, list[np.ndarray], dict[str, np.ndarray]]:
    manifest = load_manifest(path)
    times = [np.load(path / "series" / one["slug"] / "open_time.npy") for one in manifest["series"]]
    return manifest, times, {split: np.load(path / "windows" / f"{split}.npy") for split in SPLITS}


def bars_by_split(path: Path) -> dict[str, set[tuple[int, int]]]:
    """Every (series, open_time) that a window of the split covers, by a plain loop."""
    manifest, times, windows = load(path)
    length = manifest["lookback"] + manifest["horizon"]
    return {
        split: {
            (index, bar)
            for index, start in windows[split].tolist()
            for bar in times[index][start : start + length].tolist()
        }
        for split in SPLITS
    }


def contents(path: Path) -> dict[str, tuple[str, int]]:
    """Hash and modification time of each file below path."""
    return {
        str(file.relative_to(path)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def staggered() -> dict[str, pl.DataFrame]:
    """Three series listed at different times, two of them with holes."""
    return {
        "um:AAAUSDT": make_candles(600, seed=1),
        "um:BBBUSDT": make_candles(450, seed=2, start_ms=START_MS + 150 * HOUR_MS, missing=[100, 101, 300]),
        "spot:CCCUSDT": make_candles(380, seed=3, start_ms=START_MS + 220 * HOUR_MS, missing=range(200, 240)),
    }


def test_the_doge_project_s_split_is_reproduced_exactly(tmp_path):
    candles = {"um:DOGEUSDT": make_candles(45_149)}
    built = build(candles, DatasetConfig(lookback=400, horizon=120, purge=False), tmp_path)
    assert built.windows == {"train": 31_240, "validation": 6_695, "test": 6_695}
    assert built.rows == 45_149
    _, _, windows = load(built.path)
    starts = np.concatenate([windows[split][:, 1] for split in SPLITS])
    np.testing.assert_array_equal(starts, np.arange(45_149 - 520 + 1))


def test_purge_leaves_one_full_window_out_after_each_border(tmp_path):
    candles = {"um:DOGEUSDT": make_candles(45_149)}
    built = build(candles, DatasetConfig(lookback=400, horizon=120), tmp_path)
    assert built.windows == {"train": 31_240, "validation": 6_695 - 520, "test": 6_695 - 520}
    _, times, windows = load(built.path)
    manifest = load_manifest(built.path)
    assert manifest["validation_from_ms"] == times[0][31_240]
    assert manifest["test_from_ms"] == times[0][31_240 + 6_695]
    assert windows["validation"][0, 1] == 31_240 + 520


@pytest.mark.parametrize(
    "names", [["um:AAAUSDT"], ["um:BBBUSDT"], ["um:AAAUSDT", "um:BBBUSDT", "spot:CCCUSDT"]]
)
def test_no_bar_is_shared_between_splits_when_purged(tmp_path, names):
    candles = {name: frame for name, frame in staggered().items() if name in names}
    bars = bars_by_split(build(candles, SMALL, tmp_path).path)
    for one, other in combinations(SPLITS, 2):
        assert bars[one]
        assert not bars[one] & bars[other]
    times = {split: {time for _, time in bars[split]} for split in SPLITS}
    assert max(times["train"]) < min(times["validation"]) <= max(times["validation"]) < min(times["test"])


def test_without_purge_splits_do_share_bars_and_cover_every_window(tmp_path):
    built = build(staggered(), replace(SMALL, purge=False), tmp_path)
    bars = bars_by_split(built.path)
    assert bars["train"] & bars["validation"]
    manifest, _, _ = load(built.path)
    possible = sum(max(0, end - first - 15) for one in manifest["series"] for first, end in one["segments"])
    assert sum(built.windows.values()) == possible


def test_pooled_windows_are_cut_at_the_start_time_that_a_plain_loop_finds(tmp_path):
    config = replace(SMALL, purge=False, train_share=0.6, validation_share=0.2)
    manifest, times, windows = load(build(staggered(), config, tmp_path).path)
    pooled = []
    for index, series in enumerate(times):
        for start in range(len(series) - 15):
            if series[start + 15] - series[start] == 15 * HOUR_MS:
                pooled.append((int(series[start]), index, start))
    pooled.sort()
    validation_from = pooled[int(len(pooled) * 0.6)][0]
    test_from = pooled[int(len(pooled) * (0.6 + 0.2))][0]
    assert (manifest["validation_from_ms"], manifest["test_from_ms"]) == (validation_from, test_from)
    expected = {
        "train": [(i, s) for t, i, s in pooled if t < validation_from],
        "validation": [(i, s) for t, i, s in pooled if validation_from <= t < test_from],
        "test": [(i, s) for t, i, s in pooled if t >= test_from],
    }
    for split in SPLITS:
        np.testing.assert_array_equal(windows[split], expected[split])


def test_a_window_never_crosses_a_hole(tmp_path):
    manifest, times, windows = load(build(staggered(), SMALL, tmp_path).path)
    by_key = {one["key"]: one["segments"] for one in manifest["series"]}
    assert by_key["um:BBBUSDT"] == [[0, 100], [100, 298], [298, 447]]
    for split in SPLITS:
        for index, start in windows[split].tolist():
            assert set(np.diff(times[index][start : start + 16])) == {HOUR_MS}


def test_weekly_candles_have_no_holes_between_mondays(tmp_path):
    monday = 1_594_598_400_000  # 2020-07-13
    candles = {"um:AAAUSDT": make_candles(300, start_ms=monday, interval="1w")}
    manifest, _, _ = load(build(candles, SMALL, tmp_path, interval="1w").path)
    assert manifest["series"][0]["segments"] == [[0, 300]]
    assert manifest["interval_ms"] == 7 * 24 * HOUR_MS


@pytest.mark.parametrize("purge", [True, False])
@pytest.mark.parametrize(("train", "validation"), [(0.7, 0.15), (0.34, 0.33), (0.6, 0.3)])
def test_a_split_without_windows_says_how_many_rows_are_needed_and_that_many_suffice(
    tmp_path, purge, train, validation
):
    config = replace(SMALL, purge=purge, train_share=train, validation_share=validation)
    needed = rows_needed(
        SplitRule(length=16, step_ms=HOUR_MS, train_share=train, validation_share=validation, purge=purge)
    )
    with pytest.raises(
        DatasetError, match=rf"every split needs windows of 16 candles.*at least {needed} rows"
    ):
        build({"um:AAAUSDT": make_candles(needed - 1)}, config, tmp_path)
    assert not list(tmp_path.glob("*"))
    built = build({"um:AAAUSDT": make_candles(needed)}, config, tmp_path)
    assert all(built.windows.values())


def test_too_few_rows_for_a_single_window_is_the_same_error(tmp_path):
    with pytest.raises(DatasetError, match="found 0 train, 0 validation, 0 test in 5 rows of um:AAAUSDT"):
        build({"um:AAAUSDT": make_candles(5)}, SMALL, tmp_path)


def test_a_missing_amount_is_estimated_counted_and_said(tmp_path):
    gone = [3, 4, 250]
    candles = make_candles(400, without_amount=gone)
    built = build({"um:AAAUSDT": candles}, SMALL, tmp_path)
    manifest = load_manifest(built.path)
    assert manifest["series"][0]["amount_estimated"] == 3
    assert any("3 of 400 candles have no quote volume" in warning for warning in built.warnings)
    features = np.load(built.path / "series" / "um-AAAUSDT-1h" / "features.npy")
    for row, bar in enumerate(candles.iter_rows(named=True)):
        expected = bar["volume"] * (bar["open"] + bar["high"] + bar["low"] + bar["close"]) / 4
        if row not in gone:
            assert bar["quote_volume"] != expected
            expected = bar["quote_volume"]
        np.testing.assert_allclose(features[row, 5], expected, rtol=1e-6)


def test_a_series_that_has_ceased_to_trade_is_named_in_a_warning(tmp_path):
    key = SeriesKey.parse("um:AAAUSDT", "1h")
    built = build_dataset(
        {key: make_candles(400)},
        SMALL,
        tmp_path,
        stamp=calendar_stamps,
        fit=lambda rows: fit_state(SMALL.normaliser, rows),
        stale=[key],
    )
    (warning,) = built.warnings
    assert warning.startswith("um:AAAUSDT: the exchange has no candle after 20")
    assert warning.endswith("it is halted or delisted.")
    assert build({"um:AAAUSDT": make_candles(400)}, SMALL, tmp_path).warnings == ()


def test_features_are_the_candles_in_the_documented_order(tmp_path):
    candles = make_candles(400)
    built = build({"um:AAAUSDT": candles}, SMALL, tmp_path)
    folder = built.path / "series" / "um-AAAUSDT-1h"
    features, stamps = np.load(folder / "features.npy"), np.load(folder / "stamps.npy")
    columns = ["open", "high", "low", "close", "volume", "quote_volume"]
    np.testing.assert_array_equal(features, candles.select(columns).to_numpy().astype(np.float32))
    moments = candles["open_time"].to_list()
    expected = [(m.minute, m.hour, m.weekday(), m.day, m.month) for m in moments]
    np.testing.assert_array_equal(stamps, expected)
    assert (features.dtype, stamps.dtype) == (np.float32, np.int8)


def test_a_series_without_windows_in_a_split_is_a_warning(tmp_path):
    candles = {
        "um:AAAUSDT": make_candles(600),
        "um:NEWUSDT": make_candles(100, seed=1, start_ms=START_MS + 500 * HOUR_MS, missing=range(8, 20)),
    }
    built = build(candles, SMALL, tmp_path)
    assert any(
        warning.startswith("um:NEWUSDT: no train windows, since its candles run")
        for warning in built.warnings
    )
    assert not any(warning.startswith("um:AAAUSDT") for warning in built.warnings)
    assert any("1 of 2 stretches between holes are shorter than a window" in one for one in built.warnings)


def test_the_normaliser_is_fitted_on_rows_before_the_validation_border_only(tmp_path):
    seen = {}

    def fit(rows):
        seen.update({name: values.copy() for name, values in rows.items()})
        return {}

    keyed = {SeriesKey.parse(name, "1h"): frame for name, frame in staggered().items()}
    built = build_dataset(keyed, SMALL, tmp_path, stamp=lambda ms: np.zeros((len(ms), 5), np.int8), fit=fit)
    manifest, times, _ = load(built.path)
    assert list(seen) == [one["key"] for one in manifest["series"]]
    for one, series in zip(manifest["series"], times, strict=True):
        features = np.load(built.path / "series" / one["slug"] / "features.npy")
        np.testing.assert_array_equal(seen[one["key"]], features[series < manifest["validation_from_ms"]])


def test_changing_bars_after_the_border_does_not_move_the_global_statistics(tmp_path):
    config = replace(SMALL, normaliser="global_robust")
    before = build(staggered(), config, tmp_path)
    border = load_manifest(before.path)["validation_from_ms"]
    late = pl.col("open_time").dt.epoch("ms") >= border
    prices = ["open", "high", "low", "close", "volume", "quote_volume"]
    changed = {
        name: frame.with_columns(pl.when(late).then(pl.col(prices) * 7.0).otherwise(pl.col(prices)))
        for name, frame in staggered().items()
    }
    after = build(changed, config, tmp_path)
    assert after.digest != before.digest
    assert load_manifest(after.path)["normaliser"] == load_manifest(before.path)["normaliser"]
    early = {
        name: frame.with_columns(pl.when(~late).then(pl.col(prices) * 7.0).otherwise(pl.col(prices)))
        for name, frame in staggered().items()
    }
    moved = build(early, config, tmp_path)
    assert load_manifest(moved.path)["normaliser"] != load_manifest(before.path)["normaliser"]


def test_the_same_inputs_give_the_same_digest_and_rewrite_nothing(tmp_path):
    first = build(staggered(), SMALL, tmp_path / "one")
    before = contents(first.path)
    assert build(staggered(), SMALL, tmp_path / "one") == first
    assert contents(first.path) == before
    reversed_order = dict(reversed(staggered().items()))
    elsewhere = build(reversed_order, SMALL, tmp_path / "two")
    assert elsewhere.digest == first.digest
    assert elsewhere.path.name == first.path.name == first.digest[:16]
    hashes = {name: sha for name, (sha, _) in contents(elsewhere.path).items()}
    assert hashes == {name: sha for name, (sha, _) in before.items()}


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume", "quote_volume"])
@pytest.mark.parametrize("row", [0, 137, 399])
def test_any_changed_bar_gives_another_digest(tmp_path, column, row):
    candles = make_candles(400)
    factor = 0.999 if column == "low" else 1.001
    bumped = candles.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.col(column) * factor).otherwise(pl.col(column))
    )
    original = build({"um:AAAUSDT": candles}, SMALL, tmp_path)
    assert build({"um:AAAUSDT": bumped}, SMALL, tmp_path).digest != original.digest


@pytest.mark.parametrize(
    "change",
    [
        {"lookback": 13},
        {"horizon": 5},
        {"train_share": 0.69},
        {"validation_share": 0.16},
        {"purge": False},
        {"normaliser": "window_robust"},
        {"normaliser": "global_robust"},
        {"clip": 4.0},
        {"floor": "upstream"},
    ],
    ids=lambda change: "-".join(f"{name}={value}" for name, value in change.items()),
)
def test_any_changed_setting_gives_another_digest(tmp_path, change):
    candles = {"um:AAAUSDT": make_candles(400)}
    assert build(candles, replace(SMALL, **change), tmp_path).digest != build(candles, SMALL, tmp_path).digest


def test_another_series_name_or_start_gives_another_digest(tmp_path):
    digests = {
        build({"um:AAAUSDT": make_candles(400)}, SMALL, tmp_path).digest,
        build({"spot:AAAUSDT": make_candles(400)}, SMALL, tmp_path).digest,
        build({"um:AAAUSDT": make_candles(400, start_ms=START_MS + HOUR_MS)}, SMALL, tmp_path).digest,
    }
    assert len(digests) == 3


def test_other_calendar_stamps_give_another_digest(tmp_path):
    keyed = {SeriesKey.parse("um:AAAUSDT", "1h"): make_candles(400)}
    digests = {
        build_dataset(
            keyed,
            SMALL,
            tmp_path,
            stamp=lambda ms, value=value: np.full((len(ms), 5), value, np.int8),
            fit=lambda rows: {},
        ).digest
        for value in (0, 1)
    }
    assert len(digests) == 2


def test_the_manifest_says_what_the_folder_holds(tmp_path):
    built = build(staggered(), SMALL, tmp_path)
    manifest = json.loads((built.path / "manifest.json").read_text())
    _, times, windows = load(built.path)
    assert manifest["digest"] == built.digest
    assert (manifest["version"], manifest["interval"], manifest["interval_ms"]) == (1, "1h", HOUR_MS)
    assert (manifest["lookback"], manifest["horizon"]) == (12, 4)
    assert manifest["config"]["train_share"] == 0.7
    assert [one["key"] for one in manifest["series"]] == ["spot:CCCUSDT", "um:AAAUSDT", "um:BBBUSDT"]
    for one, series in zip(manifest["series"], times, strict=True):
        assert (one["rows"], one["first_ms"], one["last_ms"]) == (len(series), series[0], series[-1])
    assert manifest["windows"] == built.windows == {split: len(windows[split]) for split in SPLITS}
    assert manifest["normaliser"] == {
        "kind": "window_zscore",
        "clip": 5.0,
        "floor": "relative",
        "state": {},
    }
    assert all(windows[split].dtype == np.int32 for split in SPLITS)


@pytest.mark.parametrize("moment", ["windows", "manifest"])
def test_a_build_that_is_killed_leaves_no_half_dataset(tmp_path, moment):
    """The child stops while it writes; killed there, the next build starts clean and completes."""
    patch = {
        "windows": "dataset.np.save = lambda p, a, **k: wait() if p.parent.name == 'windows' else save(p, a)",
        "manifest": "dataset.write_json = lambda *a: wait()",
    }[moment]
    script = f"""
        import pathlib, sys, time
        from storage import dataset
        from tests.support.datasets import build, make_candles
        save = dataset.np.save
        def wait():
            pathlib.Path({str(tmp_path / "ready")!r}).touch()
            time.sleep(60)
        {patch}
        config = dataset.DatasetConfig(lookback=12, horizon=4)
        build({{"um:AAAUSDT": make_candles(400)}}, config, pathlib.Path({str(tmp_path / "root")!r}))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert [path.name for path in (tmp_path / "root").iterdir() if not path.name.startswith(".")] == []
    built = build({"um:AAAUSDT": make_candles(400)}, SMALL, tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").glob("*") if path.is_dir()] == [built.path.name]
    assert load_manifest(built.path)["digest"] == built.digest


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(path, manifest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.dataset.write_json", full)
    with pytest.raises(StorageError, match="disk is full"):
        build({"um:AAAUSDT": make_candles(400)}, SMALL, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_folder_that_is_no_dataset_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"expected a complete dataset.*build the dataset again"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(DatasetError, match=r"version 1.*found 99"):
        load_manifest(tmp_path)


def test_series_of_two_intervals_months_and_empty_series_are_refused(tmp_path):
    frame = make_candles(10)

    def attempt(candles):
        build_dataset(candles, SMALL, tmp_path, stamp=lambda ms: ms, fit=lambda rows: {})

    hour, day, month = (SeriesKey.parse("um:AAAUSDT", name) for name in ("1h", "1d", "1M"))
    with pytest.raises(DatasetError, match="one interval, found 1d, 1h"):
        attempt({hour: frame, day: frame})
    with pytest.raises(DatasetError, match="found no series"):
        attempt({})
    with pytest.raises(DatasetError, match="found interval 1M"):
        attempt({month: frame})
    with pytest.raises(DatasetError, match="found none of um:AAAUSDT:1h"):
        attempt({hour: frame.clear()})


@pytest.mark.parametrize(
    "wrong",
    [
        {"lookback": 1},
        {"horizon": 0},
        {"train_share": 0.0},
        {"validation_share": 0.3},
        {"normaliser": "x"},
        {"clip": 0},
    ],
    ids=str,
)
def test_a_wrong_setting_is_a_value_error_that_names_it(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}.*expected.*found"):
        replace(DatasetConfig(), **wrong)


def test_progress_ends_at_its_total(tmp_path):
    seen = []
    keyed = {SeriesKey.parse(name, "1h"): frame for name, frame in staggered().items()}
    build_dataset(
        keyed,
        SMALL,
        tmp_path,
        stamp=lambda ms: np.zeros((len(ms), 5), np.int8),
        fit=lambda rows: {},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_segments_and_cuts_of_hand_made_times():
    times = np.array([0, 1, 2, 5, 6, 9], dtype=np.int64)
    assert find_segments(times, 1) == [(0, 3), (3, 5), (5, 6)]
    pooled = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]], dtype=np.int32)
    starts = np.array([0, 0, 1, 1, 2, 2], dtype=np.int64)
    rule = SplitRule(length=1, step_ms=1, train_share=0.5, validation_share=0.34, purge=False)
    splits = split_windows(pooled, starts, rule)
    # int(6 * 0.5) = 3 lies within the pair that starts at 1: the pair stays together, in validation.
    assert [splits.windows[split].tolist() for split in SPLITS] == [
        [[0, 0], [1, 0]],
        [[0, 1], [1, 1]],
        [[0, 2], [1, 2]],
    ]


def test_real_candles_of_several_listings_build_without_a_shared_bar(shared_data, tmp_path):
    candles = {
        name: real_candles(shared_data, name) for name in ("um:DOGEUSDT", "um:BTCUSDT", "spot:BTCUSDT")
    }
    built = build(candles, DatasetConfig(), tmp_path)
    manifest, times, windows = load(built.path)
    assert built.rows == 17_520 + 39_085 + 34_492
    assert all(len(one["segments"]) == 1 for one in manifest["series"])
    last, first = -1, {}
    for split in SPLITS:
        starts = np.array([times[index][start] for index, start in windows[split].tolist()])
        first[split] = starts.min()
        assert first[split] > last
        last = starts.max() + 519 * HOUR_MS
    doge = next(one for one in manifest["series"] if one["key"] == "um:DOGEUSDT")
    features = np.load(built.path / "series" / doge["slug"] / "features.npy")
    assert np.isfinite(features).all()
    assert doge["amount_estimated"] == candles["um:DOGEUSDT"]["quote_volume"].null_count()


def test_prices_alone_leave_volume_and_amount_at_zero_and_the_prices_as_they_are(tmp_path: Path) -> None:
    candles = {"um:DOGEUSDT": make_candles(300, seed=1)}
    both = [
        WindowDataset.open(
            build(
                candles, DatasetConfig(lookback=16, horizon=4, prices_only=alone), tmp_path / str(alone)
            ).path
        )
        for alone in (False, True)
    ]
    with_volume, prices = (one.batch("train", [0, 5]).features for one in both)
    assert (prices[..., 4:] == 0).all()
    assert (with_volume[..., 4:] > 0).all()
    assert (prices[..., :4] == with_volume[..., :4]).all()
