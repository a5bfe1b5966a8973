"""Prepared datasets: float32 features, calendar stamps and window starts, in a folder named by its content.

    <root>/<first 16 digits of the digest>/
        series/<slug>/features.npy   float32 (T, 6)  open, high, low, close, volume, amount (quote volume)
        series/<slug>/stamps.npy     int8 (T, 5)     minute, hour, weekday (Monday 0), day, month, in UTC
        series/<slug>/open_time.npy  int64 (T,)      ms since the epoch
        windows/<split>.npy          int32 (N, 2)    series index, start row; train, validation, test
        manifest.json                                what is inside; written last

A window is a view of lookback + horizon rows, so nothing is multiplied by the window length.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray

from kronos_model.settings import Bounds, Positive, settings
from storage.atomic import atomic_directory, remove_leftovers, storage_errors, write_json
from storage.clipped_values import clipping_warnings
from storage.errors import DatasetError
from storage.interval import Interval
from storage.past import features_of
from storage.schema import SeriesKey, utc_text
from storage.splits import SPLITS, SplitRule, Splits, find_segments, pool_windows, rows_needed, split_windows

__all__ = ["BuiltDataset", "DatasetConfig", "NormaliserKind", "build_dataset", "load_manifest"]

NormaliserKind = Literal["window_zscore", "window_robust", "global_robust"]
Floor = Literal["relative", "upstream"]
Stamp = Callable[[NDArray[np.int64]], NDArray[np.int8]]
Fit = Callable[[Mapping[str, NDArray[np.float32]]], dict[str, Any]]


class Clipped(Protocol):
    """kronos_model.clipping.clipped_shares."""

    def __call__(
        self,
        series: str,
        features: NDArray[np.float32],
        starts: NDArray[np.int32],
        normaliser: Mapping[str, Any],
        *,
        lookback: int,
        horizon: int,
    ) -> dict[str, float]: ...


_VERSION = 1
_MANIFEST = "manifest.json"
_DIGEST_DIGITS = 16

logger = logging.getLogger(__name__)


@settings
class DatasetConfig:
    """How candles become windows."""

    lookback: Annotated[int, Bounds(ge=2, unit="candles")] = 400
    """Candles the model sees before the forecast begins."""

    horizon: Annotated[int, Bounds(ge=1, unit="candle")] = 120
    """Candles to forecast."""

    train_share: Annotated[float, Bounds(gt=0, lt=1)] = 0.7
    """Share of all windows, in order of time, that train (0 to 1)."""

    validation_share: Annotated[float, Bounds(gt=0, lt=1)] = 0.15
    """Share of all windows that comes next and chooses the best weights (0 to 1); what is left tests."""

    purge: bool = True
    """Leave one full window out after each border, so that no candle is in two splits."""

    prices_only: bool = False
    """Set volume and amount to 0 throughout, as the paper does for crypto; the model then serves without them too."""

    normaliser: NormaliserKind = "window_zscore"
    """window_zscore: mean and standard deviation of the lookback, as upstream. window_robust: median and
    1.4826 MAD of the lookback. global_robust: median and 1.4826 MAD of the training part of each series."""

    clip: Positive = 5.0
    """Normalised values are cut to -clip..clip (standard deviations)."""

    floor: Floor = "relative"
    """Least width of a column. relative: a millionth of its level, so that the unit of a price does not matter.
    upstream: upstream's formula, which adds 1e-5 in units of price and drowns prices far below 1."""

    def __post_init__(self) -> None:
        if self.train_share + self.validation_share >= 1:
            raise ValueError(
                "train_share and validation_share: expected two shares above 0 with a sum below 1, "
                f"found {self.train_share} and {self.validation_share}; try 0.7 and 0.15"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltDataset:
    """A complete dataset on disk."""

    path: Path
    digest: str  # SHA-256 of everything inside, 64 hexadecimal digits
    windows: dict[str, int]  # by split
    rows: int  # candles of all series together
    warnings: tuple[str, ...]  # what a reader should know, one sentence each


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arrays:
    """One series, ready to be written."""

    key: SeriesKey
    features: NDArray[np.float32]  # (T, 6)
    stamps: NDArray[np.int8]  # (T, 5)
    open_time: NDArray[np.int64]  # (T,)
    segments: list[tuple[int, int]]
    amount_estimated: int

    def files(self) -> dict[str, NDArray[Any]]:
        """The three arrays by file name."""
        return {"features": self.features, "stamps": self.stamps, "open_time": self.open_time}


def build_dataset(
    candles: Mapping[SeriesKey, pl.DataFrame],
    config: DatasetConfig,
    root: Path,
    *,
    stamp: Stamp,
    fit: Fit,
    clipped: Clipped | None = None,
    stale: Collection[SeriesKey] = (),
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> BuiltDataset:
    """Write the dataset of these validated candles under root, or find it there.

    stamp gives the calendar stamps (T, 5) of open times in ms. fit gives the normaliser's state from the rows
    of each series (by name, such as um:DOGEUSDT) that come before the validation border. clipped gives the
    shares of a series' values beyond the clip in the windows of a split; without it the manifest has none. Series
    that the exchange had no more of when it was asked are stale, which is a warning.
    """
    step_ms = _step_ms(_common_interval(candles))
    series = []
    for key in sorted(candles):
        series.append(_arrays(key, candles[key], step_ms, stamp, prices_only=config.prices_only))
        progress(len(series), len(candles) + 1)
    rule = SplitRule(
        length=config.lookback + config.horizon,
        step_ms=step_ms,
        train_share=config.train_share,
        validation_share=config.validation_share,
        purge=config.purge,
    )
    splits = _split(series, rule)
    train = {
        one.key.name: one.features[: np.searchsorted(one.open_time, splits.validation_from_ms)]
        for one in series
    }
    manifest = _describe(series, splits, config, fit(train))
    if clipped is not None:
        _measure_clipping(manifest, series, splits, clipped)
    manifest["warnings"] += [_stale(one) for one in series if one.key in stale]
    manifest["digest"] = _digest(series, splits, manifest)
    built = _publish(root, series, splits, manifest)
    progress(len(candles) + 1, len(candles) + 1)
    return built


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the dataset at path; DatasetError where there is no complete one."""
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"expected a complete dataset at {path}, but its {_MANIFEST} cannot be read ({error}); "
            "delete that folder and build the dataset again"
        ) from error
    if manifest.get("version") != _VERSION:
        raise DatasetError(
            f"expected a dataset of version {_VERSION} at {path}, found {manifest.get('version')}; "
            "build the dataset again"
        )
    return manifest


def _common_interval(candles: Mapping[SeriesKey, pl.DataFrame]) -> Interval:
    names = sorted({key.interval.name for key in candles})
    if len(names) != 1:
        raise DatasetError(
            f"a dataset needs series of one interval, found {', '.join(names) or 'no series'}; "
            "build one dataset per interval"
        )
    if empty := sorted(str(key) for key, frame in candles.items() if frame.is_empty()):
        raise DatasetError(
            f"every series needs candles, found none of {', '.join(empty)}; ingest them or leave them out"
        )
    return next(iter(candles)).interval


def _step_ms(interval: Interval) -> int:
    if interval.milliseconds is None:
        raise DatasetError(
            f"windows need candles of equal length, found interval {interval.name}; use 1w or shorter"
        )
    return interval.milliseconds


def _arrays(key: SeriesKey, frame: pl.DataFrame, step_ms: int, stamp: Stamp, *, prices_only: bool) -> _Arrays:
    """Features, stamps and segments of one series; a missing amount becomes volume times the mean price."""
    open_time = frame["open_time"].dt.epoch("ms").to_numpy()
    return _Arrays(
        key=key,
        features=features_of(frame, prices_only=prices_only),
        stamps=stamp(open_time),
        open_time=open_time,
        segments=find_segments(open_time, step_ms),
        amount_estimated=frame["quote_volume"].null_count(),
    )


def _split(series: list[_Arrays], rule: SplitRule) -> Splits:
    """The three splits; DatasetError where one would be empty."""
    pooled, starts = pool_windows(
        [one.open_time for one in series], [one.segments for one in series], rule.length
    )
    counts = dict.fromkeys(SPLITS, 0)
    if len(pooled):
        splits = split_windows(pooled, starts, rule)
        counts = {name: len(splits.windows[name]) for name in SPLITS}
        if all(counts.values()):
            return splits
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    rows = ", ".join(f"{len(one.open_time)} rows of {one.key.name}" for one in series)
    raise DatasetError(
        f"every split needs windows of {rule.length} candles, found {found} in {rows}; "
        f"a series needs at least {rows_needed(rule)} rows without a hole for these shares: "
        "ingest more history, shorten lookback or horizon, or change the shares"
    )


def _describe(
    series: list[_Arrays], splits: Splits, config: DatasetConfig, state: dict[str, Any]
) -> dict[str, Any]:
    """The manifest without its digest."""
    interval = series[0].key.interval
    return {
        "version": _VERSION,
        "interval": interval.name,
        "interval_ms": interval.milliseconds,
        "lookback": config.lookback,
        "horizon": config.horizon,
        "config": asdict(config),
        "series": [
            {
                "key": one.key.name,
                "slug": one.key.slug,
                "rows": len(one.open_time),
                "first_ms": int(one.open_time[0]),
                "last_ms": int(one.open_time[-1]),
                "segments": [list(segment) for segment in one.segments],
                "amount_estimated": one.amount_estimated,
            }
            for one in series
        ],
        "windows": {name: len(splits.windows[name]) for name in SPLITS},
        "validation_from_ms": splits.validation_from_ms,
        "test_from_ms": splits.test_from_ms,
        "normaliser": {"kind": config.normaliser, "clip": config.clip, "floor": config.floor, "state": state},
        "warnings": _warnings(series, splits, config.lookback + config.horizon),
    }


def _measure_clipping(
    manifest: dict[str, Any], series: list[_Arrays], splits: Splits, clipped: Clipped
) -> None:
    """Add the shares of each series by split, and what they warn of."""
    for index, (one, entry) in enumerate(zip(series, manifest["series"], strict=True)):
        entry["clipped"] = {
            split: clipped(
                one.key.name,
                one.features,
                windows[windows[:, 0] == index, 1],
                manifest["normaliser"],
                lookback=manifest["lookback"],
                horizon=manifest["horizon"],
            )
            for split, windows in splits.windows.items()
        }
    manifest["warnings"] += clipping_warnings(manifest)


def _warnings(series: list[_Arrays], splits: Splits, length: int) -> list[str]:
    """What was estimated or left out, one sentence each."""
    found = []
    for index, one in enumerate(series):
        name, rows = one.key.name, len(one.open_time)
        if one.amount_estimated:
            found.append(
                f"{name}: {one.amount_estimated} of {rows} candles have no quote volume; "
                "their amount is estimated as volume x (open + high + low + close) / 4."
            )
        if short := [end - first for first, end in one.segments if end - first < length]:
            found.append(
                f"{name}: {len(short)} of {len(one.segments)} stretches between holes are shorter than "
                f"a window of {length} candles; their {sum(short)} candles are in no window."
            )
        found.extend(
            f"{name}: no {split} windows, since its candles run from {utc_text(int(one.open_time[0]))} to "
            f"{utc_text(int(one.open_time[-1]))} and {_range(split, splits)}."
            for split in SPLITS
            if not (splits.windows[split][:, 0] == index).any()
        )
    return found


def _stale(one: _Arrays) -> str:
    last = utc_text(int(one.open_time[-1]))
    return f"{one.key.name}: the exchange has no candle after {last}; it is halted or delisted."


def _range(split: str, splits: Splits) -> str:
    """When a split's windows start, in words."""
    validation, test = utc_text(splits.validation_from_ms), utc_text(splits.test_from_ms)
    if split == "train":
        return f"training windows start before {validation}"
    return f"{split} windows start from {validation if split == 'validation' else test} on"


def _digest(series: list[_Arrays], splits: Splits, manifest: dict[str, Any]) -> str:
    """SHA-256 over the manifest and every array."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for one in series:
        for array in one.files().values():
            digest.update(array)  # type: ignore[arg-type]
    for name in SPLITS:
        digest.update(splits.windows[name])  # type: ignore[arg-type]
    return digest.hexdigest()


def _publish(root: Path, series: list[_Arrays], splits: Splits, manifest: dict[str, Any]) -> BuiltDataset:
    """Write the folder, complete or not at all; keep one that is already there."""
    path = root / manifest["digest"][:_DIGEST_DIGITS]
    if not path.exists():
        with _building(root):
            if not path.exists():  # nobody else built it meanwhile
                with atomic_directory(path) as folder:
                    _write(folder, series, splits, manifest)
    if load_manifest(path)["digest"] != manifest["digest"]:
        raise DatasetError(
            f"expected the dataset {manifest['digest']} at {path}, found another; "
            "delete that folder and build again"
        )
    for warning in manifest["warnings"]:
        logger.warning("%s", warning)
    return BuiltDataset(
        path=path,
        digest=manifest["digest"],
        windows=manifest["windows"],
        rows=sum(len(one.open_time) for one in series),
        warnings=tuple(manifest["warnings"]),
    )


@contextmanager
def _building(root: Path) -> Iterator[None]:
    """One builder at a time under root, without what a killed one left."""
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            remove_leftovers(root)
            yield


def _write(folder: Path, series: list[_Arrays], splits: Splits, manifest: dict[str, Any]) -> None:
    for one in series:
        target = folder / "series" / one.key.slug
        target.mkdir(parents=True)
        for name, array in one.files().items():
            np.save(target / f"{name}.npy", array, allow_pickle=False)
    (folder / "windows").mkdir()
    for split in SPLITS:
        np.save(folder / "windows" / f"{split}.npy", splits.windows[split], allow_pickle=False)
    write_json(folder / _MANIFEST, manifest)
