"""What a champion was trained on and what the market did since, as columns, for whoever compares them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dataset import load_manifest
from storage.errors import StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.registry import Champion, read_night
from storage.schema import SeriesKey

__all__ = ["Columns", "then_and_now", "trained_on"]

Floats = NDArray[np.float64]
_CLOSE, _VOLUME = 3, 4  # in a dataset's features


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Columns:
    """One series in training and now, each in order of time."""

    returns_then: Floats
    """ln(close / close before), per candle."""
    returns_now: Floats
    volumes_then: Floats
    """ln(volume) of candles in which something was traded."""
    volumes_now: Floats


def trained_on(home: Home, recipe: str, champion: Champion) -> Path:
    """The dataset of the night that made the champion; StorageError where that night left no summary."""
    night = read_night(home, recipe, champion.night)
    if night is None:
        raise StorageError(
            f"expected the summary of night {champion.night}, which made the champion of {recipe}, found none; what "
            "it was trained on is not known any more, and drift cannot be measured until another night is promoted"
        )
    return home.datasets / Path(night["dataset"]["path"]).name  # by name: the home may have been moved


def then_and_now(home: Home, folder: Path, *, candles: int) -> dict[SeriesKey, Columns]:
    """Every series of a dataset: its training part, and its newest `candles` that came after it.

    StorageError where the dataset is gone.
    """
    manifest, lake = load_manifest(folder), Lake(home.lake)
    found = {}
    for entry in manifest["series"]:
        key = SeriesKey.parse(entry["key"], manifest["interval"])
        opened = np.load(
            folder / "series" / entry["slug"] / "open_time.npy", mmap_mode="r", allow_pickle=False
        )
        rows = np.load(folder / "series" / entry["slug"] / "features.npy", mmap_mode="r", allow_pickle=False)
        then = np.asarray(rows[: np.searchsorted(opened, manifest["validation_from_ms"])], dtype=np.float64)
        now = lake.read(key, manifest["validation_from_ms"]).tail(candles)
        found[key] = Columns(
            returns_then=_returns(then[:, _CLOSE]),
            returns_now=_returns(now["close"].to_numpy()),
            volumes_then=_logs(then[:, _VOLUME]),
            volumes_now=_logs(now["volume"].to_numpy()),
        )
    return found


def _returns(close: Floats) -> Floats:
    return np.diff(np.log(close))


def _logs(volume: Floats) -> Floats:
    return np.log(volume[volume > 0])
