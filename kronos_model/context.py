"""What is known where a forecast begins, what comes out of it, and the random numbers that belong to it.

On numpy alone: whoever forecasts without a network needs no torch.
Shapes: B origins, C bars of lookback, K >= C bars of history, H steps, S sample paths, F=6 features.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Context", "Forecast", "history_bars", "row_generator"]

_WEEK_MS = 7 * 24 * 3_600_000
_MOST_HISTORY = 20_000  # a week of 1m is 10,080 bars; a week of 1s would not fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """All that is known at B origins. Future rows are not in here, so no forecaster can look at them."""

    features: NDArray[np.float32]  # (B, C, F) raw
    open_time: NDArray[np.int64]  # (B, C) ms
    future_open_time: NDArray[np.int64]  # (B, H) ms
    series: list[str]  # B names such as um:DOGEUSDT
    history: NDArray[np.float64]  # (B, K) closes up to the origin, one per interval, further back than C


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Sample paths in prices."""

    paths: NDArray[np.float32]
    """(B, S, H, 6); in every bar low <= open, close <= high, prices above 0, volume and amount at least 0."""
    violation_rate: NDArray[np.float64]
    """(B,) share of each series' bars that broke one of these rules before they were made consistent."""
    member: NDArray[np.int64] | None = None
    """(S,) of a pool: which member a path is from, by number. None where all are of one."""


def history_bars(lookback: int, interval_ms: int) -> int:
    """How many closes a context reaches back: a week, where that is not too many, and at least the lookback."""
    week = _WEEK_MS // interval_ms
    return max(lookback, week if week <= _MOST_HISTORY else 0)


def row_generator(seed: int, series: str, origin_ms: int) -> np.random.Generator:
    """Random numbers that belong to one forecast, whatever else is forecast with it."""
    digest = hashlib.sha256(f"{seed}|{series}|{origin_ms}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
