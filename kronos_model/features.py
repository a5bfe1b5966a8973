"""What the model sees of a candle, on numpy alone: six features, five calendar stamps, robust statistics.

Free of torch, so that a dataset can be built without loading it. Shapes: T bars, F=6 features.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError

__all__ = [
    "CLOSE",
    "EMPTY_WIDTH",
    "FEATURES",
    "MAD_TO_STD",
    "PRICES",
    "RELATIVE_FLOOR",
    "STAMPS",
    "UPSTREAM_EPSILON",
    "UPSTREAM_FLOOR",
    "Floor",
    "NormaliserKind",
    "calendar_stamps",
    "fit_state",
]

FEATURES = ("open", "high", "low", "close", "volume", "amount")
"""Order of the last axis of every feature array; amount is the quote volume."""
CLOSE = FEATURES.index("close")
PRICES = 4
"""The first so many features are prices."""

STAMPS = ("minute", "hour", "weekday", "day", "month")
"""Order of the last axis of every stamp array; Monday is 0, days and months count from 1, all in UTC."""

NormaliserKind = Literal["window_zscore", "window_robust", "global_robust"]
Floor = Literal["relative", "upstream"]
"""How wide a column that hardly moves is taken to be: by its own level, or by a number in units of price."""

RELATIVE_FLOOR = 1e-6
"""Of the location, at least so wide is a column: about ten steps between two float32 numbers."""
EMPTY_WIDTH = 1e-20
"""Width of a column that is zero throughout: what is said of it comes back as zero, whatever the unit."""
UPSTREAM_EPSILON = 1e-5
"""Upstream's KronosPredictor.predict: (x - mean) / (std + 1e-5), in units of price and volume."""
UPSTREAM_FLOOR = 1e-9
"""The least width of the robust kinds beside upstream's z-score, in the same units."""

MAD_TO_STD = 1.4826
"""Median absolute deviation times this estimates the standard deviation of a normal distribution."""

_MINUTE_MS = 60_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


def calendar_stamps(open_time_ms: NDArray[np.int64]) -> NDArray[np.int8]:
    """Minute, hour, weekday, day and month in UTC of each open time (ms since the epoch)."""
    minutes = open_time_ms // _MINUTE_MS
    days = minutes // 1440
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    columns = (
        minutes % 60,
        minutes // 60 % 24,
        (days + _EPOCH_WEEKDAY) % 7,
        (dates - months).astype(np.int64) + 1,
        months.astype(np.int64) % 12 + 1,
    )
    return np.stack(columns, axis=-1).astype(np.int8)  # (T, 5)


def fit_state(kind: NormaliserKind, rows: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The state a normaliser of this kind keeps, from the training rows (T, F) of each series.

    The window kinds keep nothing. global_robust keeps {"series": {name: {"location": [..], "scale": [..]}}}.
    """
    if kind != "global_robust":
        return {}
    return {"series": {name: _robust(name, values) for name, values in rows.items()}}


def _robust(name: str, values: NDArray[np.float32]) -> dict[str, list[float]]:
    """Median and scaled MAD of each column, in float64; the standard deviation where the MAD is zero."""
    if len(values) == 0:
        raise DataError(
            f"global_robust needs training rows of every series, found none of {name}; leave the series out, "
            "give it more history, or use window_robust"
        )
    wide = values.astype(np.float64)
    location = np.median(wide, axis=0)  # (F,)
    scale = MAD_TO_STD * np.median(np.abs(wide - location), axis=0)
    scale = np.where(scale > 0, scale, wide.std(axis=0))
    return {"location": location.tolist(), "scale": scale.tolist()}
