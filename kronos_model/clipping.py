"""The share of a dataset's values that the normaliser cuts: what lies beyond the clip, the model cannot see or say.

On numpy alone, as datasets are built without torch; kronos_model.normalise takes the same formulas.
Shapes: N windows of a split, B of a block, L = lookback + horizon bars, T bars of a series, F=6 features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kronos_model.features import NUMPY, PRICES, floored, location_and_width

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
        windows = windows.swapaxes(1, 2)  # (B, L, F)
        location, width = _statistics(windows[:, :lookback], normaliser, series)
        with np.errstate(over="ignore"):  # beyond float32 is beyond the clip
            beyond += (np.abs((windows - location) / width) > np.float32(normaliser["clip"])).sum(axis=(0, 1))
    return {
        "prices": round(float(beyond[:PRICES].mean()) / values, 6),
        "volumes": round(float(beyond[PRICES:].mean()) / values, 6),
    }


def _statistics(context: Floats, normaliser: Mapping[str, Any], series: str) -> tuple[Floats, Floats]:
    """Location and width (B, 1, F) of contexts (B, lookback, F), as Normaliser.measure has them."""
    kind, floor = normaliser["kind"], normaliser["floor"]
    if kind == "global_robust":
        known = normaliser["state"]["series"][series]
        location, width = (np.asarray(known[name], np.float32)[None, None] for name in ("location", "scale"))
        return location, floored(location, width, kind, floor, NUMPY)
    location, width = location_and_width(context.astype(np.float64), kind, floor, NUMPY)
    return location.astype(np.float32), width.astype(np.float32)
