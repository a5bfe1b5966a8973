"""What sample paths say to people: each figure once, with its formula and unit.

The command line, stored forecasts, the service, the served MLflow model, pictures and reports take their numbers from
here, so that one forecast is told alike everywhere. S samples, H horizon, Q levels; prices in the quote currency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_model.features import CLOSE
from kronos_model.spread import order_quantiles

__all__ = ["QUANTILES", "Outlook", "outlook_of", "quantile_label"]

QUANTILES = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Levels that are stored and served: 0.05, 0.10, ... 0.95."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outlook:
    """A forecast in numbers, step by step; the last entry of a row is the end of the horizon."""

    last_close: float
    """Close of the last candle that the model saw; every return is measured from it."""
    levels: tuple[float, ...]
    quantiles: NDArray[np.float64]
    """(Q, H) quantiles of the close over the paths, the r-th of S at r / (S + 1) (Hyndman & Fan 1996, definition 6): a
    band holds what it says at any S that reaches it, as evaluation judges it."""
    median: NDArray[np.float64]
    """(H,) median of the close over the paths."""
    means: NDArray[np.float64]
    """(6, H) means of the features over the paths, in the order of FEATURES."""
    probability_up: NDArray[np.float64]
    """(H,) share of the paths whose close is above the last one, 0 to 1."""
    expected_return: NDArray[np.float64]
    """(H,) mean close / last close - 1: the simple return that the mean of the paths earns."""
    volatility: NDArray[np.float64]
    """(H,) standard deviation over the paths of ln(close / last close), from the origin to the step; not per year."""
    samples: int
    """Paths that were drawn."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """(H,) mean of the close over the paths."""
        row: NDArray[np.float64] = self.means[CLOSE]
        return row

    def quantile(self, level: float) -> NDArray[np.float64]:
        """(H,) the quantile of one of `levels`."""
        row: NDArray[np.float64] = self.quantiles[self.levels.index(level)]
        return row


def outlook_of(
    paths: NDArray[np.float32], last_close: float, *, levels: Sequence[float] = QUANTILES
) -> Outlook:
    """The outlook of paths (S, H, 6) in prices after a last close above 0."""
    close = paths[..., CLOSE].astype(np.float64)  # (S, H)
    return Outlook(
        last_close=last_close,
        levels=tuple(levels),
        quantiles=order_quantiles(np.sort(close, axis=0)[None], levels)[:, 0],
        median=np.median(close, axis=0),
        means=paths.mean(axis=0, dtype=np.float64).T,
        probability_up=(close > last_close).mean(axis=0),
        expected_return=close.mean(axis=0) / last_close - 1,
        volatility=np.log(close / last_close).std(axis=0),
        samples=len(close),
    )


def quantile_label(level: float) -> str:
    """`q05` for 0.05, as columns are called."""
    return f"q{round(100 * level):02d}"
