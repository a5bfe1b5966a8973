"""Paths of closes as bars, and the returns that a context knows.

Shapes: B origins, K bars of history, S sample paths, H steps.
"""

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Context, Forecast, row_generator
from kronos_model.features import CLOSE, FEATURES

__all__ = ["bars_along", "one_bar_moves", "row_generators"]

Floats = NDArray[np.float64]


def one_bar_moves(context: Context) -> Floats:
    """One-bar log returns (B, K - 1); NaN before a series' first candle."""
    return np.diff(np.log(context.history), axis=1)


def row_generators(context: Context, seed: int) -> list[np.random.Generator]:
    """Each row's own random numbers."""
    rows = zip(context.series, context.open_time[:, -1].tolist(), strict=True)
    return [row_generator(seed, name, origin) for name, origin in rows]


def bars_along(context: Context, returns: Floats) -> Forecast:
    """Bars along closes given as log returns since the last close (B, S, H); volumes stay as they were."""
    last = context.features[:, -1].astype(np.float64)  # (B, F)
    closes = last[:, CLOSE, None, None] * np.exp(returns)
    opens = np.concatenate(
        [np.broadcast_to(last[:, CLOSE, None, None], closes[..., :1].shape), closes[..., :-1]], -1
    )
    paths = np.empty((*closes.shape, len(FEATURES)), np.float32)
    paths[..., 0], paths[..., 3] = opens, closes
    paths[..., 1], paths[..., 2] = np.maximum(opens, closes), np.minimum(opens, closes)
    paths[..., 4:] = last[:, None, None, 4:]
    return Forecast(paths=paths, violation_rate=np.zeros(len(paths)))
