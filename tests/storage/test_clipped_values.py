"""Values beyond the clip: a warning above 1 %, in any split, and a reason above 5 % in the test split."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from kronos_model.features import fit_state
from storage.clipped_values import clipping_warnings, too_much_clipped
from storage.dataset import DatasetConfig, build_dataset, load_manifest
from storage.schema import SeriesKey
from tests.support.datasets import build, calendar_stamps, make_candles

SMALL = DatasetConfig(lookback=16, horizon=4, normaliser="global_robust")


def series(**prices: float) -> list[dict[str, Any]]:
    clipped = {split: {"prices": share, "volumes": 0.9} for split, share in prices.items()}
    return [{"key": "um:AAAUSDT", "clipped": clipped}]


def manifest(**prices: float) -> dict[str, Any]:
    return {"series": series(**prices), "normaliser": {"kind": "window_zscore", "clip": 5.0}}


@pytest.mark.parametrize(("share", "told"), [(0.0, 0), (0.01, 0), (0.0101, 1), (1.0, 1)])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_above_one_percent_a_reader_is_told(split: str, share: float, told: int) -> None:
    found = clipping_warnings(manifest(**{"train": 0.0, split: share}))
    assert len(found) == told
    assert all(f"um:AAAUSDT: {100 * share:.1f} % ({split}) of its prices" in one for one in found)


@pytest.mark.parametrize(("share", "told"), [(0.0, 0), (0.05, 0), (0.0501, 1), (1.0, 1)])
def test_above_five_percent_of_the_test_split_nothing_may_be_promoted(share: float, told: int) -> None:
    assert len(too_much_clipped(manifest(train=1.0, test=share))) == told


def test_a_dataset_from_before_forbids_nothing() -> None:
    old = {
        "series": [{"key": "um:AAAUSDT"}],
        "normaliser": {"clip": 5.0, "kind": "window_zscore", "state": {}},
    }
    assert too_much_clipped(old) == []


def risen(rows: int = 400) -> pl.DataFrame:
    """Prices that leave what the training part has seen, in the last tenth."""
    factor = np.where(np.arange(rows) >= 0.9 * rows, 8.0, 1.0)
    numbers = ["open", "high", "low", "close", "quote_volume"]
    return make_candles(rows).with_columns([pl.col(name) * factor for name in numbers])


def test_a_series_that_has_left_the_range_of_its_training_is_warned_of_and_may_not_be_promoted(
    tmp_path, caplog
) -> None:
    candles = {"um:AAAUSDT": risen(), "um:BBBUSDT": make_candles(400, seed=5)}
    built = build(candles, SMALL, tmp_path)
    told = load_manifest(built.path)
    clipped = told["series"][0]["clipped"]
    assert clipped["test"]["prices"] > 0.5
    assert clipped["train"]["prices"] < 0.01
    assert [one for one in built.warnings if "beyond the clip" in one] == [
        f"um:AAAUSDT: {100 * clipped['test']['prices']:.1f} % (test) of its prices lie beyond the clip of 5, where the "
        "model can neither see nor forecast them; set dataset.normaliser to window_zscore, or raise dataset.clip."
    ]
    assert any("beyond the clip" in one for one in caplog.messages)
    assert len(too_much_clipped(told)) == 1
    by_window = build(candles, DatasetConfig(lookback=16, horizon=4), tmp_path)
    assert too_much_clipped(load_manifest(by_window.path)) == []


def test_a_builder_that_measures_nothing_says_nothing(tmp_path) -> None:
    built = build_dataset(
        {SeriesKey.parse("um:AAAUSDT", "1h"): risen()},
        SMALL,
        tmp_path,
        stamp=calendar_stamps,
        fit=lambda rows: fit_state("global_robust", rows),
    )
    told = load_manifest(built.path)
    assert "clipped" not in told["series"][0]
    assert too_much_clipped(told) == []
    assert built.warnings == ()
