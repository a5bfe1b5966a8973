"""How much of the network's median move is worth keeping, per stretch of the horizon.

A network's location is mostly noise, and noise in the location costs more CRPS than anything else does. So the share
that has the lowest CRPS is shrunk further towards 0 by as much as it is uncertain.
Shapes: N origins, S sample paths, H steps, K stretches of the horizon, G candidates, T stretches of time.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kronos_model.postprocess import located

__all__ = ["STRETCHES", "fit_location", "jackknife_variance"]

STRETCHES = 4
"""Of the horizon, each with a share of its own."""
_SHARES = np.linspace(0, 1, 21)

Floats = NDArray[np.float64]


def fit_location(samples: Floats, realised: Floats, blocks: NDArray[np.int64]) -> tuple[float, ...]:
    """Shares in [0, 1] per stretch, from log returns of paths (N, S, H) and of the truth (N, H).

    The share a with the lowest CRPS of each stretch, times 1 - v / a^2 or 0, where v is its variance by leaving out
    one stretch of time, `blocks` (N,), after the other: James and Stein's factor (1961), the positive part.
    """
    horizon = realised.shape[1]
    truth = realised[:, None]  # of the CRPS only the distance from it depends on the location
    losses = np.stack(
        [np.abs(located(samples, np.full(horizon, one)) - truth).mean(axis=1) for one in _SHARES]
    )  # (G, N, H)
    per_block = np.stack([losses[:, blocks == one].sum(axis=1) for one in np.unique(blocks)])  # (T, G, H)
    stretches = np.array_split(np.arange(horizon), min(STRETCHES, horizon))
    return tuple(_share(per_block[:, :, steps].sum(axis=2)) for steps in stretches)


def jackknife_variance(without: Floats) -> float:
    """Variance of an estimate from what it is without one stretch of time after the other, (T, ...), summed."""
    count = len(without)
    if count < 2:
        return math.inf
    return float(((without - without.mean(axis=0)) ** 2).sum() * (count - 1) / count)


def _share(losses: Floats) -> float:
    """From losses (T, G) of each stretch of time and candidate."""
    total = losses.sum(axis=0)
    share = float(_SHARES[total.argmin()])
    variance = jackknife_variance(_SHARES[(total - losses).argmin(axis=1)])
    return round(share * max(0.0, 1 - variance / share**2), 4) if share else 0.0
