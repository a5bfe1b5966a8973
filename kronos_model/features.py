"""What the model sees of a candle: six features, five calendar stamps, and where a window's columns lie.

Free of torch, so that a dataset can be built without loading it; the formulas of location and width are written once,
for numpy's arrays and torch's tensors. Shapes: B windows, C context bars, T bars, F=6 features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError

__all__ = [
    "CLOSE",
    "FEATURES",
    "NUMPY",
    "PRICES",
    "STAMPS",
    "Arithmetic",
    "Floor",
    "NormaliserKind",
    "calendar_stamps",
    "fit_state",
    "floored",
    "location_and_width",
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

_RELATIVE_FLOOR = 1e-6
"""Of the location, at least so wide is a column: about ten steps between two float32 numbers."""
_EMPTY_WIDTH = 1e-20
"""Width of a column that is zero throughout: what is said of it comes back as zero, whatever the unit."""
_UPSTREAM_EPSILON = 1e-5
"""Upstream's KronosPredictor.predict: (x - mean) / (std + 1e-5), in units of price and volume."""
_UPSTREAM_FLOOR = 1e-9
"""The least width of the robust kinds beside upstream's z-score, in the same units."""

_MAD_TO_STD = 1.4826
"""Median absolute deviation times this estimates the standard deviation of a normal distribution."""

Array = TypeVar("Array", bound=Any)
"""numpy's or torch's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic(Generic[Array]):
    """What numpy and torch call by different names; statistics are along the bars, (B, C, F) to (B, 1, F)."""

    mean: Callable[[Array], Array]
    deviation: Callable[[Array], Array]
    median: Callable[[Array], Array]
    maximum: Callable[[Array, Array], Array]
    where: Callable[[Any, Array, Any], Array]


NUMPY: Arithmetic[NDArray[Any]] = Arithmetic(
    mean=lambda x: x.mean(axis=1, keepdims=True),
    deviation=lambda x: x.std(axis=1, keepdims=True),
    median=lambda x: np.asarray(np.median(x, axis=1, keepdims=True)),
    maximum=np.maximum,
    where=np.where,
)

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
    return {"series": {name: _fitted(name, values) for name, values in rows.items()}}


def location_and_width(
    context: Array, kind: NormaliserKind, floor: Floor, of: Arithmetic[Array]
) -> tuple[Array, Array]:
    """Where the columns of contexts (B, C, F) in float64 lie and how wide they are, (B, 1, F), for a window kind."""
    location, width = _zscore(context, of) if kind == "window_zscore" else _robust(context, of)
    return location, floored(location, width, kind, floor, of)


def floored(
    location: Array, width: Array, kind: NormaliserKind, floor: Floor, of: Arithmetic[Array]
) -> Array:
    """Widths above 0, also of columns that do not move."""
    if floor == "upstream" and kind == "window_zscore":
        widened: Array = width + _UPSTREAM_EPSILON
        return widened
    relative: Array = abs(location) * _RELATIVE_FLOOR
    least = of.maximum(width, relative)
    if floor == "upstream":
        clipped: Array = least.clip(min=_UPSTREAM_FLOOR)
        return clipped
    return of.where(least > 0, least, _EMPTY_WIDTH)


def _zscore(context: Array, of: Arithmetic[Array]) -> tuple[Array, Array]:
    return of.mean(context), of.deviation(context)


def _robust(context: Array, of: Arithmetic[Array]) -> tuple[Array, Array]:
    """Median and scaled MAD; the standard deviation where over half of the values are equal."""
    median = of.median(context)
    width: Array = of.median(abs(context - median)) * _MAD_TO_STD
    return median, of.where(width > 0, width, of.deviation(context))


def _fitted(name: str, values: NDArray[np.float32]) -> dict[str, list[float]]:
    """Median and scaled MAD of each column, in float64; the standard deviation where the MAD is zero."""
    if len(values) == 0:
        raise DataError(
            f"global_robust needs training rows of every series, found none of {name}; leave the series out, "
            "give it more history, or use window_robust"
        )
    location, width = _robust(values.astype(np.float64)[None], NUMPY)
    return {"location": location[0, 0].tolist(), "scale": width[0, 0].tolist()}
