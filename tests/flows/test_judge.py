"""What judging hands to the gate beside the scores."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import flows.judge as module
from storage.dataset import DatasetConfig
from tests.support.datasets import build, make_candles


class AskedError(Exception):
    """The gate was asked, with these."""


@pytest.mark.parametrize(("normaliser", "told"), [("global_robust", 1), ("window_zscore", 0)])
def test_the_gate_is_told_of_every_series_that_is_cut_too_often(
    tmp_path, monkeypatch: pytest.MonkeyPatch, normaliser: Any, told: int
) -> None:
    factor = np.where(np.arange(400) >= 360, 8.0, 1.0)
    names = ["open", "high", "low", "close"]
    candles = make_candles(400).with_columns([pl.col(name) * factor for name in names])
    config = DatasetConfig(lookback=16, horizon=4, normaliser=normaliser)
    dataset = build({"um:AAAUSDT": candles}, config, tmp_path)

    def ask(*scores: object, forbidden: list[str], **rest: object) -> None:
        raise AskedError(*forbidden)

    monkeypatch.setattr(module, "gate", ask)
    monkeypatch.setattr(module, "within", lambda *task: lambda *models, seed: SimpleNamespace(path=tmp_path))
    settings = SimpleNamespace(limits=None, evaluation=None, gate=None, seed=0)
    night = SimpleNamespace(config=settings, run=None, home=None, dataset=dataset)
    with pytest.raises(AskedError) as asked:
        module.judge_challenger(night, None, None, None)  # type: ignore[arg-type]
    assert len(asked.value.args) == told
    assert all("of its prices in the test range lie beyond the clip of 5" in one for one in asked.value.args)
