"""Scores of several models at the same origins, as arrays with names; one folder on disk.

Shapes: M models, N origins of all series, H steps, G series, L levels of central intervals, Q quantiles of a
fan, C bars of lookback, K steps of post-processing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import ModelError
from kronos_model.evaluation.config import PRETRAINING_END_MS
from kronos_model.files import replace_directory, write_json

__all__ = [
    "BLENDS",
    "FAN_QUANTILES",
    "LEVELS",
    "QUANTILES",
    "RAW",
    "REFERENCES_POOL",
    "STAGES",
    "Fans",
    "Scores",
]

RAW = "_raw"
"""Ends the name of a network's forecasts as it draws them, where post-processing changes them."""
REFERENCES_POOL = "references"
"""The equal pool of the references, which serves where there is no champion."""
BLENDS = {"challenger": "blend", "champion": "champion_blend"}
"""What the blend of each network that may serve goes by."""
STAGES = ("raw", "location", "blend", "spread")
"""What a network's forecast is after each step of its post-processing."""
FAN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILES = (0.025, *(round(0.05 * step, 2) for step in range(1, 20)), 0.975)
"""Levels at which forecasts are kept."""
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of the central intervals that are scored."""
_VERSION = 3

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
    """Scores per model, origin and step, of r = ln(close / last known close) where no unit is given.

    Origins are sorted by series, then time. All series are forecast at the same times, as far as they have
    candles there. What can be derived from these fields is a property or lives in `summary`.
    """

    models: tuple[str, ...]
    series: tuple[str, ...]
    interval: str
    interval_ms: int
    horizon: int
    dataset_digest: str
    notes: tuple[str, ...]  # what whoever reads these numbers must know, in sentences
    samples: int  # paths per origin of whatever draws some
    weights: Mapping[str, Mapping[str, float]]  # of the members of each blend, by its name
    stages: tuple[str, ...]  # K steps of the challenger's post-processing, in their order; none without it

    series_index: NDArray[np.int32]  # (N,) into series
    origin_ms: NDArray[np.int64]  # (N,) open time of the last known candle; ascending within a series
    last_close: Floats  # (N,) quote currency
    next_open: Floats  # (N,) quote currency: the first price at which one could have traded
    realised: Floats  # (N, H) what r became
    realised_variance: Floats  # (N,) sum of the squared one-bar log returns over the horizon
    price_scale: Floats  # (G,) mean |one-bar change of the close| over the training rows, quote currency
    return_scale: Floats  # (G,) the same of ln close

    median: Floats  # (M, N, H) the point forecast that absolute errors are taken of
    mean: Floats  # (M, N, H) the point forecast that squared errors are taken of
    mean_ratio: Floats  # (M, N, H) mean of close / last known close
    crps: Floats  # (M, N, H)
    pinball: Floats  # (M, N, H) mean over 0.05, 0.1, ... 0.95
    pit: Floats  # (M, N, H)
    probability_up: Floats  # (M, N, H) share of paths with r > 0
    covered: NDArray[np.bool_]  # (L, M, N, H) inside the central interval, at LEVELS
    width: Floats  # (L, M, N, H) of that interval
    winkler: Floats  # (L, M, N, H) its interval score
    energy: Floats  # (M, N) energy score of the whole path
    variance: Floats  # (M, N) expected realised_variance
    price_ic: Floats  # (M, N) correlation over the steps of mean path and truth, mean of the four prices
    price_rank_ic: Floats  # (M, N) the same of ranks
    violation_rate: Floats  # (M, N) share of sampled bars that had to be made consistent
    stage_crps: Floats  # (K, N, H) of the challenger's forecast after each step
    fans: Fans

    @property
    def horizon_ms(self) -> int:
        """Duration of a forecast."""
        return self.horizon * self.interval_ms

    @property
    def overlaps_pretraining(self) -> bool:
        """Whether any scored bar is older than the end of Kronos's pre-training data."""
        return bool(self.origin_ms.min() < PRETRAINING_END_MS)

    def direction_hit(self, *, band: float = 0.0) -> Floats:
        """Is the median's sign right? (M, N, H): 1 yes, 0 no, NaN where it calls none or |realised| <= band."""
        called, moved = np.sign(self.median), np.sign(self.realised)
        silent = (called == 0) | (np.abs(self.realised) <= band)
        return np.where(silent, np.nan, (called == moved).astype(np.float64))

    def level(self, share: float) -> int:
        """Row of a central interval's share in covered, width and winkler; ValueError if it was not scored."""
        if share not in LEVELS:
            raise ValueError(
                f"expected one of the scored intervals {', '.join(map(str, LEVELS))}, found {share}"
            )
        return LEVELS.index(share)

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
        described |= {name: tuple(described[name]) for name in ("models", "series", "notes", "stages")}
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
