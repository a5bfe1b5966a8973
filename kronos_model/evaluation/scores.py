"""Scores of several models at the same origins, as arrays with names; one folder on disk.

Shapes: M models, N origins of all series, H steps, G series, Q quantiles of a fan, C bars of lookback.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import ModelError
from kronos_model.evaluation.config import PRETRAINING_END_MS
from kronos_model.files import replace_directory, write_json

__all__ = ["FAN_QUANTILES", "Fans", "Scores"]

FAN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_VERSION = 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fans:
    """One origin of each series, for plots: closes in the quote currency."""

    origin_ms: NDArray[np.int64]  # (G,) open time of the last known candle
    context: Floats  # (G, C) known closes
    realised: Floats  # (G, H)
    quantiles: Floats  # (G, M, Q, H) per step, at FAN_QUANTILES


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Scores per model, origin and step, of r = ln(close / last known close) where no unit is given."""

    models: tuple[str, ...]
    series: tuple[str, ...]
    interval: str
    interval_ms: int
    horizon: int
    dataset_digest: str
    series_index: NDArray[np.int32]  # (N,) into series
    origin_ms: NDArray[np.int64]  # (N,) open time of the last known candle; ascending within a series
    last_close: Floats  # (N,) quote currency
    absolute_error: Floats  # (M, N, H) of the median
    squared_error: Floats  # (M, N, H) of the mean
    crps: Floats  # (M, N, H)
    price_error: Floats  # (M, N, H) |median close - close|, quote currency
    covered_50: NDArray[np.bool_]  # (M, N, H)
    covered_90: NDArray[np.bool_]  # (M, N, H)
    width_50: Floats  # (M, N, H)
    width_90: Floats  # (M, N, H)
    direction_hit: Floats  # (M, N) at the last step: 1, 0, NaN where nothing moves
    violation_rate: Floats  # (M, N) share of sampled bars that had to be made consistent
    fans: Fans

    @property
    def horizon_ms(self) -> int:
        """Duration of a forecast."""
        return self.horizon * self.interval_ms

    @property
    def overlaps_pretraining(self) -> bool:
        """Whether any scored bar is older than the end of Kronos's pre-training data."""
        return bool(self.origin_ms.min() < PRETRAINING_END_MS)

    def index(self, model: str) -> int:
        """Row of a model; ValueError if it was not scored."""
        if model not in self.models:
            raise ValueError(f"expected one of the scored models {', '.join(self.models)}, found {model!r}")
        return self.models.index(model)

    def save(self, folder: Path) -> Path:
        """Write the folder (scores.json and scores.npz) in one step, replacing an older one."""
        arrays, described = _parts(self)
        with replace_directory(folder) as temporary:
            np.savez_compressed(temporary / "scores.npz", **arrays)  # type: ignore[arg-type]
            write_json(temporary / "scores.json", {"version": _VERSION, **described})
        return folder

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what save() wrote; ModelError where that is not what the folder holds."""
        try:
            described: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            with np.load(folder / "scores.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            fans = Fans(**{field.name: arrays.pop(f"fan_{field.name}") for field in fields(Fans)})
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ModelError(
                f"expected saved scores in {folder}, but they cannot be read ({error}); evaluate again"
            ) from error
        if described.pop("version", None) != _VERSION:
            raise ModelError(f"expected scores of version {_VERSION} in {folder}; evaluate again")
        described |= {"models": tuple(described["models"]), "series": tuple(described["series"])}
        return cls(**described, **arrays, fans=fans)


def _parts(scores: Scores) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays by file name, and the plain values."""
    arrays = {f"fan_{field.name}": getattr(scores.fans, field.name) for field in fields(Fans)}
    described = {}
    for field in fields(Scores):
        value = getattr(scores, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif not isinstance(value, Fans):
            described[field.name] = value
    return arrays, described
