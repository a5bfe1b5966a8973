"""Forecasters without a network that may serve: they cost next to nothing and beat most networks.

All of them see a Context alone, work on whole batches, and draw from a generator of each row's series and origin.
Shapes: B origins, C bars of lookback, K bars of history, S sample paths, H steps, F=6 features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kronos_model.bars_from_closes import bars_along, one_bar_moves, row_generators
from kronos_model.context import Context, Forecast
from kronos_model.pool import deal, equal, member_of, pooled
from kronos_model.volatility import EWMA_DECAY, HAR_LOOKBACK, Garch, HarRv

__all__ = [
    "REFERENCES",
    "BlockBootstrap",
    "EwmaCone",
    "ReferenceMember",
    "make_references",
    "references_pool",
    "stretches",
]

REFERENCES = ("ewma", "har", "bootstrap")
"""Members of the references' pool. garch joins them only where it is named, for it needs the library `arch`."""

Floats = NDArray[np.float64]


class ReferenceMember(Protocol):
    """A forecaster with a name. The same context must give the same paths."""

    @property
    def name(self) -> str:
        """What its paths go by."""
        ...

    def forecast(self, context: Context) -> Forecast:
        """Sample paths (B, S, H, F) in prices."""
        ...


@dataclass(frozen=True, kw_only=True)
class EwmaCone:
    """A random walk without drift, its variance an exponentially weighted mean of squared returns (RiskMetrics)."""

    samples: int
    seed: int
    name: str = "ewma"

    def forecast(self, context: Context) -> Forecast:
        moves = one_bar_moves(context)
        weights = EWMA_DECAY ** np.arange(moves.shape[1] - 1, -1, -1.0) * ~np.isnan(moves)
        sigma = np.sqrt((weights * np.nan_to_num(moves) ** 2).sum(axis=1) / weights.sum(axis=1))  # (B,)
        shape = (self.samples, context.future_open_time.shape[1])
        shocks = np.stack([one.standard_normal(shape) for one in row_generators(context, self.seed)])
        return bars_along(context, np.cumsum(sigma[:, None, None] * shocks, axis=-1))


@dataclass(frozen=True, kw_only=True)
class BlockBootstrap:
    """A walk made of stretches of the series' own past returns, less their mean.

    Stationary bootstrap (Politis and Romano 1994): stretches of geometric length, around the end of the
    history, so that volatility clusters and fat tails stay.
    """

    samples: int
    seed: int
    mean_block: int = 24  # bars
    name: str = "bootstrap"

    def forecast(self, context: Context) -> Forecast:
        moves = one_bar_moves(context)
        known = (~np.isnan(moves)).sum(axis=1)  # (B,); they stand at the end
        centred = np.nan_to_num(moves - np.nanmean(moves, axis=1, keepdims=True))
        shape = (self.samples, context.future_open_time.shape[1])
        uniforms = np.stack([one.random((2, *shape)) for one in row_generators(context, self.seed)])
        share, offset = stretches(uniforms[:, 0] < 1 / self.mean_block, uniforms[:, 1])
        start = np.floor(share * known[:, None, None]).astype(np.int64)
        row = (moves.shape[1] - known)[:, None, None] + (start + offset) % known[:, None, None]
        returns = np.take_along_axis(centred[:, None], row, axis=-1)
        return bars_along(context, np.cumsum(returns, axis=-1))


def make_references(
    lookback: int, *, samples: int, seed: int, names: Sequence[str] = REFERENCES
) -> tuple[dict[str, ReferenceMember], list[str]]:
    """The references of these names by them, and a sentence for each that cannot be had here."""
    makers: Mapping[str, Callable[[], ReferenceMember]] = {
        "ewma": lambda: EwmaCone(samples=samples, seed=seed),
        "har": lambda: HarRv(samples=samples, seed=seed),
        "bootstrap": lambda: BlockBootstrap(samples=samples, seed=seed),
        "garch": lambda: Garch(samples=samples, seed=seed),
    }
    missing = {name: why for name in names if (why := _missing(name, lookback))}
    made = {name: makers[name]() for name in names if name not in missing}
    return made, [f"{name} was left out: {why}" for name, why in missing.items()]


def references_pool(paths: Mapping[str, NDArray[np.float32]]) -> Forecast:
    """The equal pool of references that drew S paths (B, S, H, F) each, of which it takes the first."""
    samples = min(drawn.shape[1] for drawn in paths.values())
    dealt = deal(equal(tuple(paths)), samples)
    made = pooled(paths, dealt)
    return Forecast(paths=made, violation_rate=np.zeros(len(made)), member=member_of(dealt))


def stretches(restart: NDArray[np.bool_], uniforms: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Where each element of a stationary bootstrap comes from, along the last axis.

    A new stretch begins at every restart (and at 0). Returns where an element's stretch begins, as the share of the
    source that the uniform drawn there says, and how far into it the element is.
    """
    steps = np.arange(restart.shape[-1])
    begun = np.maximum.accumulate(np.where(restart, steps, 0), axis=-1)
    return np.take_along_axis(uniforms, begun, axis=-1), steps - begun


def _missing(name: str, lookback: int) -> str:
    """Why a reference cannot be had; empty where it can."""
    if name == "har" and lookback < HAR_LOOKBACK:
        return f"it needs a lookback of {HAR_LOOKBACK} candles, found {lookback}"
    if name == "garch" and find_spec("arch") is None:
        return "it needs the library arch, which is not installed"
    return ""
