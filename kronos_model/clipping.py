"""The share of a dataset's values that the normaliser cuts: what lies beyond the clip, the model cannot see or say.

On numpy alone, as datasets are built without torch; the statistics are those of kronos_model.normalise.
Shapes: N windows of a split, B of a block, L = lookback + horizon bars, T bars of a series, F=6 features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kronos_model.features import (
    EMPTY_WIDTH,
    MAD_TO_STD,
    PRICES,
    RELATIVE_FLOOR,
    UPSTREAM_EPSILON,
    UPSTREAM_FLOOR,
    Floor,
)

__all__ = ["SAMPLED", "clipped_shares"]

SAMPLED = 256
"""Windows of a series and split that are looked at, at most, evenly spaced: neighbours share all but one bar."""

_BLOCK = 64  # windows at a time: 400 + 120 bars of them are 1.6 MB in float64

Floats = NDArray[np.float32]


def clipped_shares(
    series: str,
    features: Floats,
    starts: NDArray[np.integer],
    normaliser: Mapping[str, Any],
    *,
    lookback: int,
    horizon: int,
) -> dict[str, float]:
    """Share (0 to 1) of normalised prices, and of volumes and amounts, beyond the clip in windows of one series.

    features is (T, F), starts (N,) are the windows' first rows, normaliser is as a manifest has it. Both shares are 0
    where there is no window.
    """
    chosen = starts[np.linspace(0, len(starts) - 1, min(len(starts), SAMPLED)).round().astype(np.int64)]
    beyond, values = np.zeros(len(features[0]), np.int64), max(1, len(chosen) * (lookback + horizon))
    for at in range(0, len(chosen), _BLOCK):
        windows = sliding_window_view(features, lookback + horizon, axis=0)[chosen[at : at + _BLOCK]]
        location, width = _statistics(windows[..., :lookback], normaliser, series)
        with np.errstate(over="ignore"):  # beyond float32 is beyond the clip
            beyond += (np.abs((windows - location) / width) > np.float32(normaliser["clip"])).sum(axis=(0, 2))
    return {
        "prices": round(float(beyond[:PRICES].mean()) / values, 6),
        "volumes": round(float(beyond[PRICES:].mean()) / values, 6),
    }


def _statistics(context: Floats, normaliser: Mapping[str, Any], series: str) -> tuple[Floats, Floats]:
    """Location and width (B, F, 1) of contexts (B, F, lookback), as Normaliser.measure has them."""
    kind, floor = normaliser["kind"], normaliser["floor"]
    if kind == "global_robust":
        known = normaliser["state"]["series"][series]
        location, width = (
            np.asarray(known[name], np.float32)[None, :, None] for name in ("location", "scale")
        )
        return location, _floored(location, width, floor)
    wide = context.astype(np.float64)
    if kind == "window_zscore":
        location, width = wide.mean(axis=-1, keepdims=True), wide.std(axis=-1, keepdims=True)
        width = width + UPSTREAM_EPSILON if floor == "upstream" else _floored(location, width, floor)
    else:
        location = np.median(wide, axis=-1, keepdims=True)
        width = MAD_TO_STD * np.median(np.abs(wide - location), axis=-1, keepdims=True)
        width = np.where(width > 0, width, wide.std(axis=-1, keepdims=True))
        width = _floored(location, width, floor)
    return location.astype(np.float32), width.astype(np.float32)


def _floored(location: NDArray[Any], width: NDArray[Any], floor: Floor) -> NDArray[Any]:
    floored: NDArray[Any] = np.maximum(width, np.abs(location) * RELATIVE_FLOOR)
    if floor == "upstream":
        return floored.clip(min=UPSTREAM_FLOOR)
    floored[floored == 0] = EMPTY_WIDTH
    return floored
