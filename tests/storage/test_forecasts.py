"""Forecasts at rest: kept as they were made."""

import errno
import os

import polars as pl
import pytest

from storage.errors import StorageError
from storage.forecasts import ForecastStore
from storage.schema import SeriesKey
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, full_candles

MODEL = "ab" * 32
SUMMARY = {"samples": 20, "mean": [1.5, 2.5], "name": "tiny"}


def forecast(seed: int = 0) -> pl.DataFrame:
    frame = full_candles(12, seed=seed).select("open_time", mean="close", q05="low", q95="high")
    return frame.with_columns(step=pl.int_range(1, 13))


def test_a_forecast_is_read_as_it_was_saved(tmp_path):
    path = ForecastStore(tmp_path, now_ms=lambda: 5).save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    assert path == tmp_path / "spot-BTCUSDT-1h" / f"20240601T000000Z-{MODEL[:16]}"
    assert sorted(file.name for file in path.iterdir()) == ["forecast.parquet", "summary.json"]
    stored = ForecastStore(tmp_path).latest(BTC)
    assert stored is not None
    assert (stored.key, stored.origin_ms, stored.model_digest, stored.saved_ms) == (BTC, JUNE_MS, MODEL, 5)
    assert stored.summary == SUMMARY
    assert stored.frame().equals(forecast())


def test_the_same_forecast_again_changes_nothing(tmp_path):
    first = ForecastStore(tmp_path, now_ms=lambda: 5).save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.iterdir()}
    assert ForecastStore(tmp_path, now_ms=lambda: 6).save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY) == first
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.iterdir()} == before


@pytest.mark.parametrize(("seed", "summary"), [(1, SUMMARY), (0, {**SUMMARY, "samples": 21})])
def test_another_forecast_under_the_same_name_is_refused_and_the_old_one_stays(tmp_path, seed, summary):
    store = ForecastStore(tmp_path)
    store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    with pytest.raises(
        StorageError, match=r"2024-06-01 00:00:00 UTC by abab.*never changed: keep it or delete"
    ):
        store.save(BTC, JUNE_MS, MODEL, forecast(seed), summary)
    (stored,) = store.list(BTC)
    assert stored.frame().equals(forecast())
    assert stored.summary == SUMMARY


def test_forecasts_are_listed_by_origin_and_then_by_when_they_were_saved(tmp_path):
    clock = iter(range(100))
    store = ForecastStore(tmp_path, now_ms=lambda: next(clock))
    for origin, model in [(2, "ff"), (0, "aa"), (2, "aa"), (1, "cc")]:
        store.save(BTC, JUNE_MS + origin * HOUR_MS, model * 32, forecast(), {})
    store.save(SeriesKey.parse("um:BTCUSDT", "1h"), JUNE_MS + 9 * HOUR_MS, MODEL, forecast(), {})
    found = [((one.origin_ms - JUNE_MS) // HOUR_MS, one.model_digest[:2]) for one in store.list(BTC)]
    assert found == [(0, "aa"), (1, "cc"), (2, "ff"), (2, "aa")]
    latest = store.latest(BTC)
    assert latest is not None
    assert latest.model_digest == "aa" * 32


def test_a_series_without_forecasts_has_no_latest(tmp_path):
    assert ForecastStore(tmp_path / "none").list(BTC) == []
    assert ForecastStore(tmp_path / "none").latest(BTC) is None


def test_a_full_disk_leaves_no_half_forecast(tmp_path, monkeypatch):
    store = ForecastStore(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "rename", full)
        with pytest.raises(StorageError, match="the disk is full"):
            store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    assert store.list(BTC) == []
    assert list((tmp_path / BTC.slug).iterdir()) == []
    store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    assert len(store.list(BTC)) == 1


def test_a_writer_that_comes_second_at_the_same_moment_compares(tmp_path, monkeypatch):
    first, second = ForecastStore(tmp_path), ForecastStore(tmp_path)
    rename = os.rename

    def lose(old: str, new: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        first.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
        rename(old, new)

    monkeypatch.setattr(os, "rename", lose)
    second.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    assert len(list((tmp_path / BTC.slug).iterdir())) == 1


@pytest.mark.parametrize("frame", [forecast().drop("step"), forecast().drop("open_time"), forecast().clear()])
def test_a_frame_that_is_no_forecast_is_refused(tmp_path, frame):
    with pytest.raises(StorageError, match=r"^expected a forecast of spot:BTCUSDT:1h with open_time, step"):
        ForecastStore(tmp_path).save(BTC, JUNE_MS, MODEL, frame, {})
    assert list(tmp_path.iterdir()) == []


def test_nan_in_a_summary_is_refused_and_nothing_is_kept(tmp_path):
    with pytest.raises(StorageError, match="replace it by null"):
        ForecastStore(tmp_path).save(BTC, JUNE_MS, MODEL, forecast(), {"loss": float("nan")})
    assert ForecastStore(tmp_path).list(BTC) == []


@pytest.mark.parametrize("name", ["forecast.parquet", "summary.json"])
def test_a_damaged_forecast_is_named_with_its_remedy(tmp_path, name):
    store = ForecastStore(tmp_path)
    path = store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    (path / name).write_text("broken")
    with pytest.raises(
        StorageError, match=rf"^expected a forecast in {path}, found .*; delete it and forecast again"
    ):
        store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)


def test_a_forecast_is_found_by_series_origin_and_model(tmp_path):
    store = ForecastStore(tmp_path)
    store.save(BTC, JUNE_MS, MODEL, forecast(), SUMMARY)
    found = store.find(BTC, JUNE_MS, MODEL)
    assert found is not None
    assert found.summary == SUMMARY
    assert store.find(BTC, JUNE_MS + HOUR_MS, MODEL) is None
    assert store.find(BTC, JUNE_MS, "cd" * 32) is None


def test_the_series_that_have_forecasts_are_told_and_folders_to_skip_are_not_opened(tmp_path):
    store = ForecastStore(tmp_path)
    assert store.series() == []
    keys = [
        SeriesKey.parse(*one)
        for one in (("um:DOGEUSDT", "1h"), ("spot:BTCUSDT", "1M"), ("spot:BTCUSDT", "1m"))
    ]
    for key in keys:
        path = store.save(key, JUNE_MS, MODEL, forecast(), SUMMARY)
    assert store.series() == sorted(keys)
    (path / "summary.json").write_text("broken")
    assert store.list(keys[-1], skip={path.name}) == []
    with pytest.raises(StorageError, match="delete it and forecast again"):
        store.list(keys[-1])
