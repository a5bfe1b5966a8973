"""Forecasts at rest: kept as they were made."""

import errno
import json
import os

import numpy as np
import polars as pl
import pytest

from storage.errors import StorageError
from storage.forecasts import ForecastStore
from storage.parquet import read_parquet, write_parquet
from storage.schema import SeriesKey
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, asked, full_candles

MODEL = "ab" * 32
SUMMARY = {"samples": 20, "mean": [1.5, 2.5], "name": "tiny"}


def forecast(seed: int = 0) -> pl.DataFrame:
    frame = full_candles(12, seed=seed).select("open_time", mean="close", q05="low", q95="high")
    return frame.with_columns(step=pl.int_range(1, 13))


def test_a_forecast_is_read_as_it_was_saved(tmp_path):
    path = ForecastStore(tmp_path, now_ms=lambda: 5).save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    assert path == tmp_path / "spot-BTCUSDT-1h" / asked(BTC, JUNE_MS, MODEL).name
    assert path.name.startswith("20240601T000000Z-")
    assert sorted(file.name for file in path.iterdir()) == ["forecast.parquet", "summary.json"]
    stored = ForecastStore(tmp_path).list(BTC)[-1]
    assert (stored.key, stored.origin_ms, stored.model_digest, stored.saved_ms) == (BTC, JUNE_MS, MODEL, 5)
    assert stored.summary == SUMMARY
    assert stored.frame().equals(forecast())


def test_the_same_forecast_again_changes_nothing(tmp_path):
    first = ForecastStore(tmp_path, now_ms=lambda: 5).save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.iterdir()}
    assert (
        ForecastStore(tmp_path, now_ms=lambda: 6).save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
        == first
    )
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.iterdir()} == before


@pytest.mark.parametrize(("seed", "summary"), [(1, SUMMARY), (0, {**SUMMARY, "samples": 21})])
def test_another_forecast_under_the_same_name_is_refused_and_the_old_one_stays(tmp_path, seed, summary):
    store = ForecastStore(tmp_path)
    store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    with pytest.raises(
        StorageError, match=r"2024-06-01 00:00:00 UTC by abab.*never changed: keep it or delete"
    ):
        store.save(asked(BTC, JUNE_MS, MODEL), forecast(seed), summary)
    (stored,) = store.list(BTC)
    assert stored.frame().equals(forecast())
    assert stored.summary == SUMMARY


def test_forecasts_are_listed_by_origin_and_then_by_when_they_were_saved(tmp_path):
    clock = iter(range(100))
    store = ForecastStore(tmp_path, now_ms=lambda: next(clock))
    for origin, model in [(2, "ff"), (0, "aa"), (2, "aa"), (1, "cc")]:
        store.save(asked(BTC, JUNE_MS + origin * HOUR_MS, model * 32), forecast(), {})
    store.save(asked(SeriesKey.parse("um:BTCUSDT", "1h"), JUNE_MS + 9 * HOUR_MS, MODEL), forecast(), {})
    found = [((one.origin_ms - JUNE_MS) // HOUR_MS, one.model_digest[:2]) for one in store.list(BTC)]
    assert found == [(0, "aa"), (1, "cc"), (2, "ff"), (2, "aa")]
    latest = store.list(BTC)[-1]
    assert latest.model_digest == "aa" * 32


def test_a_series_without_forecasts_has_none(tmp_path):
    assert ForecastStore(tmp_path / "none").list(BTC) == []


def test_a_full_disk_leaves_no_half_forecast(tmp_path, monkeypatch):
    store = ForecastStore(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "rename", full)
        with pytest.raises(StorageError, match="the disk is full"):
            store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    assert store.list(BTC) == []
    assert list((tmp_path / BTC.slug).iterdir()) == []
    store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    assert len(store.list(BTC)) == 1


def test_a_writer_that_comes_second_at_the_same_moment_compares(tmp_path, monkeypatch):
    first, second = ForecastStore(tmp_path), ForecastStore(tmp_path)
    rename = os.rename

    def lose(old: str, new: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        first.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
        rename(old, new)

    monkeypatch.setattr(os, "rename", lose)
    second.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    assert len(list((tmp_path / BTC.slug).iterdir())) == 1


@pytest.mark.parametrize("frame", [forecast().drop("step"), forecast().drop("open_time"), forecast().clear()])
def test_a_frame_that_is_no_forecast_is_refused(tmp_path, frame):
    with pytest.raises(StorageError, match=r"^expected a forecast of spot:BTCUSDT:1h with open_time, step"):
        ForecastStore(tmp_path).save(asked(BTC, JUNE_MS, MODEL), frame, {})
    assert list(tmp_path.iterdir()) == []


def test_nan_in_a_summary_is_refused_and_nothing_is_kept(tmp_path):
    with pytest.raises(StorageError, match="replace it by null"):
        ForecastStore(tmp_path).save(asked(BTC, JUNE_MS, MODEL), forecast(), {"loss": float("nan")})
    assert ForecastStore(tmp_path).list(BTC) == []


@pytest.mark.parametrize("name", ["forecast.parquet", "summary.json"])
def test_a_damaged_forecast_is_named_with_its_remedy(tmp_path, name):
    store = ForecastStore(tmp_path)
    path = store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)
    (path / name).write_text("broken")
    with pytest.raises(
        StorageError, match=rf"^expected a forecast in {path}, found .*; delete it and forecast again"
    ):
        store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY)


OTHERS = {
    "tokenizer_digest": "00" * 8,
    "seen": "00" * 8,
    "lookback": 33,
    "horizon": 11,
    "sampling": {"samples": 20, "temperature": 0.9},
    "seed": 1,
    "code": "11" * 8,
}


def test_a_forecast_is_found_by_its_question_and_by_no_other(tmp_path):
    store, question = ForecastStore(tmp_path), asked(BTC, JUNE_MS, MODEL)
    store.save(question, forecast(), SUMMARY)
    found = store.find(question)
    assert found is not None
    assert found.summary == SUMMARY
    assert store.read(BTC, found.path) == found
    others = [asked(BTC, JUNE_MS, MODEL, **{name: value}) for name, value in OTHERS.items()]
    others += [asked(BTC, JUNE_MS + HOUR_MS, MODEL), asked(BTC, JUNE_MS, "cd" * 32)]
    others.append(asked(SeriesKey.parse("um:BTCUSDT", "1h"), JUNE_MS, MODEL))
    assert [store.find(one) for one in others] == [None] * 10
    assert len({one.name for one in [question, *others]}) == 11


def test_another_question_at_the_same_origin_is_kept_beside_the_first(tmp_path):
    store = ForecastStore(tmp_path)
    for seed in range(3):
        store.save(asked(BTC, JUNE_MS, MODEL, seed=seed), forecast(seed), SUMMARY)
    assert len(store.list(BTC)) == 3


def test_a_forecast_of_version_0_1_0_is_listed_and_read_as_it_was(tmp_path):
    folder = tmp_path / BTC.slug / f"20240601T000000Z-{MODEL[:16]}"
    folder.mkdir(parents=True)
    write_parquet(forecast(), folder / "forecast.parquet")
    told = {"version": 1, "key": str(BTC), "origin_ms": JUNE_MS, "model_digest": MODEL, "saved_ms": 5}
    (folder / "summary.json").write_text(json.dumps({**told, "summary": SUMMARY}))
    (stored,) = ForecastStore(tmp_path).list(BTC)
    assert (stored.model_digest, stored.saved_ms, stored.summary) == (MODEL, 5, SUMMARY)
    assert stored.frame().equals(forecast())
    assert stored.closes() is None


def test_the_series_that_have_forecasts_are_told_and_folders_to_skip_are_not_opened(tmp_path):
    store = ForecastStore(tmp_path)
    assert store.series() == []
    keys = [
        SeriesKey.parse(*one)
        for one in (("um:DOGEUSDT", "1h"), ("spot:BTCUSDT", "1M"), ("spot:BTCUSDT", "1m"))
    ]
    for key in keys:
        path = store.save(asked(key, JUNE_MS, MODEL), forecast(), SUMMARY)
    assert store.series() == sorted(keys)
    (path / "summary.json").write_text("broken")
    assert store.list(keys[-1], skip={path.name}) == []
    with pytest.raises(StorageError, match="delete it and forecast again"):
        store.list(keys[-1])


def paths(seed: int = 0, samples: int = 100, steps: int = 12) -> np.ndarray:
    walks = np.random.default_rng(seed).normal(0, 0.006, (samples, steps)).cumsum(axis=1)
    return (0.0677 * np.exp(walks)).astype(np.float32)


def test_paths_are_kept_to_the_last_bit_in_one_step_with_the_forecast(tmp_path):
    store, question = ForecastStore(tmp_path), asked(BTC, JUNE_MS, MODEL)
    path = store.save(question, forecast(), SUMMARY, closes=paths())
    assert sorted(file.name for file in path.iterdir()) == [
        "forecast.parquet",
        "paths.parquet",
        "summary.json",
    ]
    (stored,) = store.list(BTC)
    found = stored.closes()
    assert stored.samples == 100
    assert found is not None
    assert (found.dtype, found.tobytes()) == (np.float32, paths().tobytes())
    assert read_parquet(path / "paths.parquet").columns == ["sample", "closes"]
    assert store.save(question, forecast(), SUMMARY, closes=paths().astype(np.float64)) == path
    with pytest.raises(StorageError, match="never changed: keep it or delete"):
        store.save(question, forecast(), SUMMARY, closes=paths(1))


def test_a_hundred_paths_of_two_days_of_hours_take_no_more_than_four_bytes_a_close(tmp_path):
    frame = pl.concat([forecast()] * 4)
    path = ForecastStore(tmp_path).save(asked(BTC, JUNE_MS, MODEL), frame, SUMMARY, closes=paths(steps=48))
    assert (path / "paths.parquet").stat().st_size < 100 * 48 * 4


@pytest.mark.parametrize(
    ("closes", "found"),
    [
        (paths(steps=11), r"paths of 12 steps, found an array of shape \(100, 11\)"),
        (paths()[0], r"paths of 12 steps, found an array of shape \(12,\)"),
        (paths()[:0], r"paths of 12 steps, found an array of shape \(0, 12\)"),
        (np.where(np.eye(100, 12) > 0, np.nan, paths()), "prices above 0, found 12 of 1200 that are none"),
        (np.where(np.eye(100, 12) > 0, 0.0, paths()), "prices above 0, found 12 of 1200 that are none"),
    ],
)
def test_paths_that_cannot_be_scored_are_refused_and_nothing_is_kept(tmp_path, closes, found):
    with pytest.raises(
        StorageError, match=rf"^expected the closes of a forecast of spot:BTCUSDT:1h as {found}"
    ):
        ForecastStore(tmp_path).save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY, closes=closes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "broken", "short"])
def test_damaged_paths_are_named_with_their_remedy_and_never_taken_for_none(tmp_path, damage):
    store = ForecastStore(tmp_path)
    path = store.save(asked(BTC, JUNE_MS, MODEL), forecast(), SUMMARY, closes=paths())
    file = path / "paths.parquet"
    if damage == "short":
        write_parquet(read_parquet(file).head(99), file)
    elif damage == "broken":
        file.write_text("broken")
    else:
        file.unlink()
    (stored,) = store.list(BTC)
    with pytest.raises(StorageError, match=rf"^expected 100 paths of a forecast in {path}, found a damaged"):
        stored.closes()
