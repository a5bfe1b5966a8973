"""A model as MLflow serves it: a long table of candles in, quantiles of the next closes out.

MLflow copies this file, the package kronos_model and two folders of safetensors into each registered model (models
from code): nothing is unpickled, and where it is served nothing but the libraries needs to be installed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from kronos_model.errors import DataError
from kronos_model.features import FEATURES
from kronos_model.forecaster import Forecaster
from kronos_model.hub import read_metadata
from kronos_model.sampling import SamplingConfig

__all__ = ["QUANTILES", "KronosModel"]

QUANTILES = tuple(round(0.05 * step, 2) for step in range(1, 20))
_CLOSE = FEATURES.index("close")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


class KronosModel(PythonModel):
    """Consecutive closed candles of one or several series, oldest first: series, open_time (UTC), open, high, low,
    close, volume and, where known, amount (quote volume)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load both parts, as MLflow asks once per process."""
        tokenizer, predictor = (Path(context.artifacts[part]) for part in ("tokenizer", "predictor"))
        self._forecaster = Forecaster.load(tokenizer, predictor)
        metadata = read_metadata(predictor)
        if metadata is None:
            raise DataError(f"{predictor} does not say what it was trained on: register a trained model.")
        self._horizon = int(metadata["horizon"])
        self._step_ms = _milliseconds(metadata["interval"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per series and step: open_time of the step, mean and quantiles of the close."""
        given = params or {}
        horizon = int(given.get("horizon") or self._horizon)
        drawn = {name: given[name] for name in ("samples", "temperature", "top_k", "top_p") if name in given}
        config = SamplingConfig(**drawn)
        seed = int(given.get("seed", 0))
        groups = model_input.groupby("series", sort=False)
        return pd.concat(
            [self._one(str(name), rows, horizon, config, seed) for name, rows in groups], ignore_index=True
        )

    def _one(
        self, name: str, rows: pd.DataFrame, horizon: int, config: SamplingConfig, seed: int
    ) -> pd.DataFrame:
        open_time = rows["open_time"].to_numpy("datetime64[ms]").astype(np.int64)
        if (np.diff(open_time) != self._step_ms).any():
            raise DataError(
                f"{name}: expected consecutive candles, oldest first, {self._step_ms // 1000} s apart as in training, "
                "found others: sort them and cut them after the last hole."
            )
        future = open_time[-1] + self._step_ms * np.arange(1, horizon + 1)
        closes = (
            self._forecaster.paths(
                _features(rows)[None], open_time[None], future[None], [name], config=config, seed=seed
            )
            .paths[0, :, :, _CLOSE]
            .astype(np.float64)
        )  # (S, H)
        table = {
            "series": name,
            "open_time": future.astype("datetime64[ms]").astype("datetime64[ns]"),
            "step": np.arange(1, horizon + 1, dtype=np.int64),
            "mean": closes.mean(axis=0),
        }
        levels = np.quantile(closes, QUANTILES, axis=0)
        table |= {f"q{round(100 * level):02d}": row for level, row in zip(QUANTILES, levels, strict=True)}
        return pd.DataFrame(table)


def _features(rows: pd.DataFrame) -> NDArray[np.float32]:
    """Features (C, 6); an amount that is not known is volume times the mean price, as in training."""
    table = rows.reindex(columns=list(FEATURES)).astype(np.float64)
    estimate = table["volume"] * table[["open", "high", "low", "close"]].mean(axis=1)
    return np.ascontiguousarray(table.assign(amount=table["amount"].fillna(estimate)), dtype=np.float32)


def _milliseconds(interval: str) -> int:
    """Length of a candle; datasets, and so models, know no months."""
    found = re.fullmatch(r"(\d+)([smhdw])", interval)
    if found is None:
        raise DataError(f"expected an interval such as 1h, found {interval!r}: train the model again.")
    return int(found[1]) * _UNITS_MS[found[2]]


set_model(KronosModel())
