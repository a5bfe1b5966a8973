"""Windows of a prepared dataset, memory-mapped; each is a pure function of its split and index.

Reads the folder that storage.dataset writes (its layout is documented there) and nothing else.
Shapes: B batch, L = lookback + horizon bars, F=6 features, N windows, T bars of a series.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_model.errors import DataError
from kronos_model.features import CLOSE, FEATURES, STAMPS, calendar_stamps
from kronos_model.normalise import Normaliser

__all__ = ["FEATURES", "STAMPS", "Split", "WindowDataset", "Windows", "calendar_stamps", "mapped"]

Split = Literal["train", "validation", "test"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """A batch of raw windows."""

    features: Tensor  # (B, L, F) float32
    stamps: Tensor  # (B, L, 5) int64
    series: list[str]  # B names such as um:DOGEUSDT
    open_time: NDArray[np.int64]  # (B, L) ms since the epoch, UTC


@dataclass(frozen=True, kw_only=True, slots=True)
class _Series:
    """One series' arrays, mapped from disk."""

    features: NDArray[np.float32]  # (T, F)
    stamps: NDArray[np.int8]  # (T, 5)
    open_time: NDArray[np.int64]  # (T,)

    @classmethod
    def open(cls, folder: Path, rows: int) -> Self:
        return cls(
            features=mapped(folder / "features.npy", np.float32, (rows, len(FEATURES))),
            stamps=mapped(folder / "stamps.npy", np.int8, (rows, len(STAMPS))),
            open_time=mapped(folder / "open_time.npy", np.int64, (rows,)),
        )


class WindowDataset:
    """A dataset folder, opened for reading. Holds no random state and may be shared between workers."""

    def __init__(
        self, manifest: dict[str, Any], *, series: Sequence[_Series], windows: dict[Split, NDArray[np.int32]]
    ) -> None:
        self.manifest = manifest
        self.interval_ms: int = manifest["interval_ms"]
        self.lookback: int = manifest["lookback"]
        self.horizon: int = manifest["horizon"]
        self.normaliser = Normaliser.from_dict(manifest["normaliser"])
        self.series: tuple[str, ...] = tuple(entry["key"] for entry in manifest["series"])
        self._series = series
        self._windows = windows

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the dataset at path; DataError where it is not a complete one."""
        manifest = _manifest(path)
        series = [_Series.open(path / "series" / one["slug"], one["rows"]) for one in manifest["series"]]
        windows = {
            split: mapped(path / "windows" / f"{split}.npy", np.int32, (manifest["windows"][split], 2))
            for split in get_args(Split)
        }
        return cls(manifest, series=series, windows=windows)

    @property
    def length(self) -> int:
        """Bars of a window: lookback + horizon."""
        return self.lookback + self.horizon

    def count(self, split: Split) -> int:
        """Windows of a split."""
        return len(self._windows[split])

    def locations(self, split: Split) -> NDArray[np.int32]:
        """(N, 2): index into series, and start row, of each window of a split, in order of start time."""
        return self._windows[split]

    def start_ms(self, split: Split) -> NDArray[np.int64]:
        """(N,): open time of the first candle of each window of a split, ms since the epoch, UTC."""
        starts = np.empty(len(self._windows[split]), np.int64)
        for index, source in enumerate(self._series):
            own = self._windows[split][:, 0] == index
            starts[own] = source.open_time[self._windows[split][own, 1]]
        return starts

    def last_ms(self, split: Split) -> int | None:
        """Open time of the last candle that a window of the split touches; None where it has no window."""
        starts = self.start_ms(split)
        return int(starts.max()) + (self.length - 1) * self.interval_ms if len(starts) else None

    def at(self, split: Split, start_ms: int) -> Self:
        """This dataset with only those windows of a split that start at one time."""
        chosen = self._windows[split][self.start_ms(split) == start_ms]
        return type(self)(self.manifest, series=self._series, windows={**self._windows, split: chosen})

    def with_other_future(self, known_until_ms: int) -> Self:
        """This dataset with other values in every candle that opens after a time: what is known stays."""
        series = []
        for source in self._series:
            features = source.features.copy()
            later = source.open_time > known_until_ms
            features[later] = features[later][::-1] * np.float32(1.5)  # still candles: ordered, positive
            series.append(replace(source, features=features))
        return type(self)(self.manifest, series=series, windows=self._windows)

    def batch(self, split: Split, indices: Sequence[int] | NDArray[np.integer]) -> Windows:
        """The windows of a split at these indices, copied out of the maps."""
        chosen = self._windows[split][np.asarray(indices, dtype=np.int64)]  # (B, 2)
        shape = (len(chosen), self.length)
        features = np.empty((*shape, len(FEATURES)), np.float32)
        stamps = np.empty((*shape, len(STAMPS)), np.int64)
        open_time = np.empty(shape, np.int64)
        for row, (index, start) in enumerate(chosen.tolist()):
            source, bars = self._series[index], slice(start, start + self.length)
            features[row] = source.features[bars]
            stamps[row] = source.stamps[bars]
            open_time[row] = source.open_time[bars]
        return Windows(
            features=torch.from_numpy(features),
            stamps=torch.from_numpy(stamps),
            series=[self.series[index] for index in chosen[:, 0].tolist()],
            open_time=open_time,
        )

    def rows(self, series: int, split: Split) -> NDArray[np.float32]:
        """Candles (T, F) of one series from the first to the last that a window of the split touches; a view."""
        starts = self._windows[split][self._windows[split][:, 0] == series, 1]
        if len(starts) == 0:
            return self._series[series].features[:0]
        return self._series[series].features[int(starts.min()) : int(starts.max()) + self.length]

    def known_closes(
        self, split: Split, indices: Sequence[int] | NDArray[np.integer], bars: int
    ) -> NDArray[np.float64]:
        """Closes (B, bars) up to each window's last known candle, also of candles before its lookback.

        One per interval: a hole keeps the close before it, and NaN stands before a series' first candle.
        """
        chosen = self._windows[split][np.asarray(indices, dtype=np.int64)]
        back = self.interval_ms * np.arange(bars - 1, -1, -1, dtype=np.int64)
        closes = np.full((len(chosen), bars), np.nan)
        for row, (index, start) in enumerate(chosen.tolist()):
            source, origin = self._series[index], start + self.lookback - 1
            known = source.open_time[: origin + 1]
            at = np.searchsorted(known, known[-1] - back, side="right") - 1
            closes[row, at >= 0] = source.features[at[at >= 0], CLOSE]
        return closes


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected a complete dataset at {path}, but its manifest.json cannot be read ({error}); "
            "delete that folder and build the dataset again"
        ) from error
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"expected a dataset of version {_VERSION} at {path}, found version {manifest.get('version')}; "
            "build the dataset again"
        )
    return manifest


def mapped(
    path: Path,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    *,
    what: str = "a dataset array at",
    remedy: str = "delete the dataset's folder and build it again",
) -> NDArray[Any]:
    """A read-only array backed by the file, of exactly this type and shape; DataError where it is another."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"expected {what} {path}, found none that can be read ({error}); {remedy}") from error
    if array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}"
        raise DataError(f"expected {np.dtype(dtype)} {shape} in {path}, found {found}; {remedy}")
    return np.asarray(array)  # a plain view on the map: slicing numpy.memmap itself is several times slower
