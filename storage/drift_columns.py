"""What a champion was trained on and what the market did since, as columns, for whoever compares them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dataset import load_manifest
from storage.errors import StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.registry import Champion, read_night
from storage.schema import SeriesKey

__all__ = ["then_and_now", "trained_on"]

Floats = NDArray[np.float64]
_CLOSE, _VOLUME = 3, 4  # in a dataset's features


def trained_on(home: Home, recipe: str, champion: Champion) -> Path:
    """The dataset of the night that made the champion; StorageError where that night left no summary."""
    night = read_night(home, recipe, champion.night)
    if night is None:
        raise StorageError(
            f"expected the summary of night {champion.night}, which made the champion of {recipe}, found none; what "
            "it was trained on is not known any more, and drift cannot be measured until another night is promoted"
        )
    return home.datasets / Path(night["dataset"]["path"]).name  # by name: the home may have been moved


def then_and_now(
    home: Home, folder: Path, *, candles: int
) -> Iterator[tuple[SeriesKey, str, Floats, Floats]]:
    """For every series of a dataset and for returns and volume: its training part, and its newest `candles` after it.

    Returns are ln(close / close before), per candle; volume is its ln where something was traded. StorageError where
    the dataset is gone.
    """
    manifest, lake = load_manifest(folder), Lake(home.lake)
    for entry in manifest["series"]:
        key = SeriesKey.parse(entry["key"], manifest["interval"])
        opened, rows = (
            np.load(folder / "series" / entry["slug"] / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("open_time", "features")
        )
        then = np.asarray(rows[: np.searchsorted(opened, manifest["validation_from_ms"])], dtype=np.float64)
        now = lake.read(key, manifest["validation_from_ms"]).tail(candles)
        yield key, "returns", _returns(then[:, _CLOSE]), _returns(now["close"].to_numpy())
        yield key, "volume", _logs(then[:, _VOLUME]), _logs(now["volume"].to_numpy())


def _returns(close: Floats) -> Floats:
    return np.diff(np.log(close))


def _logs(volume: Floats) -> Floats:
    return np.log(volume[volume > 0])
