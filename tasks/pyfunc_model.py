"""A model as MLflow serves it: a long table of candles in, quantiles of the next closes out.

MLflow copies this file, the packages kronos_model and storage and two folders of safetensors into each registered model
(models from code): nothing is unpickled, and where it is served nothing but the libraries needs to be installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from kronos_model.context import Context, history_bars
from kronos_model.errors import DataError
from kronos_model.features import CLOSE, FEATURES
from kronos_model.hub import check_horizon, made_for
from kronos_model.outlook import outlook_of, quantile_label
from kronos_model.postprocess import NETWORK
from kronos_model.sampling import SamplingConfig
from kronos_model.served import Served
from storage.interval import Interval
from storage.past import closes_before, features_of, following

__all__ = ["KronosModel"]


class KronosModel(PythonModel):
    """Consecutive closed candles of one or several series, oldest first: series, open_time (UTC), open, high, low,
    close, volume and, where known, amount (quote volume).

    The last ones, as many as the model was trained to see, are what its network sees; those before them are history for
    the references in its pool: a week of them gives the forecast that every other door gives.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load both parts, as MLflow asks once per process."""
        tokenizer, predictor = (Path(context.artifacts[part]) for part in ("tokenizer", "predictor"))
        self._served = Served.load(tokenizer, predictor, name="champion")
        made = made_for(predictor)
        if made is None:
            raise DataError(f"{predictor} does not say what it was trained on: register a trained model.")
        self._made = made
        self._interval = Interval(made.interval)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per series and step: its open_time, mean and quantiles of the close, and what they say up to there:
        P(up), expected return and volatility (kronos_model.outlook).

        A temperature, top_k or top_p other than the default gives the network as it draws, without post-processing.
        """
        given = params or {}
        horizon = int(given.get("horizon") or self._made.horizon)
        check_horizon(horizon, self._made.horizon)
        drawn = {name: given[name] for name in ("samples", "temperature", "top_k", "top_p") if name in given}
        config = replace(self._served.as_judged(SamplingConfig()), **drawn)
        seed = int(given.get("seed", 0))
        groups = model_input.groupby("series", sort=False)
        return pd.concat(
            [self._one(str(name), rows, horizon, config, seed) for name, rows in groups], ignore_index=True
        )

    def _one(
        self, name: str, rows: pd.DataFrame, horizon: int, config: SamplingConfig, seed: int
    ) -> pd.DataFrame:
        seen = self._context(name, rows, horizon, config)
        forecast = self._served.paths(seen, config, seed)
        outlook = outlook_of(forecast.paths[0], float(seen.features[0, -1, CLOSE]))
        told = ("mean", "probability_up", "expected_return", "volatility")
        table = {
            "series": name,
            "open_time": seen.future_open_time[0].astype("datetime64[ms]").astype("datetime64[ns]"),
            "step": np.arange(1, horizon + 1, dtype=np.int64),
            **{one: getattr(outlook, one) for one in told},
        }
        levels = zip(outlook.levels, outlook.quantiles, strict=True)
        return pd.DataFrame({**table, **{quantile_label(level): row for level, row in levels}})

    def _context(self, name: str, rows: pd.DataFrame, horizon: int, config: SamplingConfig) -> Context:
        """What these candles say of one series."""
        open_time = rows["open_time"].to_numpy("datetime64[ms]").astype(np.int64)
        step_ms, lookback = self._interval.milliseconds, self._made.lookback
        if (np.diff(open_time) != step_ms).any():
            raise DataError(
                f"{name}: expected consecutive candles, oldest first, {(step_ms or 0) // 1000} s apart as in training, "
                "found others: sort them and cut them after the last hole."
            )
        if len(rows) < lookback and self._served.shares(config) != {NETWORK: 1.0}:
            raise DataError(
                f"{name}: expected the newest {lookback} candles or more, as many as its post-processing was fitted "
                f"for, found {len(rows)}: give those before them too."
            )
        features = _features(rows)
        bars = history_bars(lookback, self._interval.next(0))
        return Context(
            features=features[None, -lookback:],
            open_time=open_time[None, -lookback:],
            future_open_time=following(self._interval, int(open_time[-1]), horizon)[None],
            series=[name],
            history=closes_before(self._interval, open_time, features[:, CLOSE], bars)[None],
        )


def _features(rows: pd.DataFrame) -> NDArray[np.float32]:
    """Features (C, 6) of a table of candles."""
    table = rows.reindex(columns=list(FEATURES)).astype(np.float64)
    candles = pl.DataFrame({name: table[name].to_numpy() for name in FEATURES}, nan_to_null=True)
    return features_of(candles.rename({"amount": "quote_volume"}))


set_model(KronosModel())
