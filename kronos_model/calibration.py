"""Conformal scaling of the spread of sample paths: how much wider or narrower a model's fan should have been.

Sampled fans of Kronos are too narrow more often than not, not always by the same share in the middle and at the edges.
At each step the distance of a path from the median is multiplied by a factor that depends on how far out the path
lies, chosen on validation origins so that each of several central intervals covers what it says.
Split conformal prediction (Lei et al. 2018, arXiv 1604.04173) with scores as in conformalised quantile regression
(Romano et al. 2019, arXiv 1905.03222), but as ratios to the half width, so that a fan keeps its shape.
Shapes: N origins, B series, S sample paths, H steps, L levels, F=6 features.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError, ModelError
from kronos_model.features import CLOSE, PRICES
from kronos_model.files import CALIBRATION_FILE, read_json, write_json
from kronos_model.sampling import SamplingConfig
from kronos_model.settings import Count, Counted, NotNegative, TopP, settings

__all__ = ["LEVELS", "Calibration", "fewest_origins"]

LEVELS = (0.5, 0.8, 0.9)
"""Central intervals that are to cover what they say; the gate asks about the widest."""
_VERSION = 2
_NARROWEST, _WIDEST = 0.1, 10.0
_FARTHEST = math.log(1e6)  # no path is moved further than to a millionth or a million times the last close


@settings
class Calibration:
    """Factors of the spread per level and step, and what they were fitted for."""

    levels: tuple[float, ...]
    """Shares of the central intervals that the factors were chosen for, ascending."""
    factors: tuple[tuple[float, ...], ...]
    """Of the spread, per level, at step 1, 2, ...; steps beyond the last one use the last."""
    origins: Count
    """Validation origins behind each factor."""
    samples: Count
    """Sample paths per origin there."""
    temperature: NotNegative
    """Sampling settings that the factors hold for."""
    top_k: Counted
    top_p: TopP

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in pairwise((0.0, *self.levels, 1.0)))
        if not self.levels or not ascending:
            raise ValueError(
                f"levels: expected ascending shares between 0 and 1, found {self.levels}; {LEVELS} are usual"
            )
        alike = len(self.factors) == len(self.levels) and len({len(row) for row in self.factors}) == 1
        if not alike or not self.factors[0]:
            raise ValueError(
                f"factors: expected as many steps for each of {self.levels}, found {self.factors}"
            )
        if not all(0 < factor < math.inf for row in self.factors for factor in row):
            raise ValueError(f"factors: expected numbers above 0, found {self.factors}")

    @property
    def level(self) -> float:
        """The widest interval that the factors were chosen for."""
        return self.levels[-1]

    @classmethod
    def fit(
        cls,
        samples: NDArray[np.float64],
        realised: NDArray[np.float64],
        sampling: SamplingConfig,
        *,
        levels: Sequence[float] = LEVELS,
    ) -> Self:
        """From log returns since the last close of paths (N, S, H) and of what happened (N, H).

        Split conformal prediction, for each level alone. An origin's ratio at a step is the smallest factor with
        which its interval would just have covered the truth; the factor of a step is the ceil(level (N + 1) W)-th
        smallest of the N W ratios of the W steps around it, for one step's N alone jump from step to step. Where
        origins are exchangeable, an interval scaled by it covers a new one with at least that probability, on
        average over these W steps: the price of pooling is that a step itself is covered so only as far as its
        neighbours, in units of their own width, are missed alike.
        """
        count, _, horizon = samples.shape
        if count < fewest_origins(levels[-1]):
            raise DataError(
                f"a calibration at {levels[-1]} needs at least {fewest_origins(levels[-1])} origins, found {count}; "
                "widen the validation range"
            )
        ratios = [_ratios(samples, realised, level) for level in levels]
        return cls(
            levels=tuple(levels),
            factors=tuple(
                tuple(_conformal(one[:, around], level) for around in _windows(horizon))
                for one, level in zip(ratios, levels, strict=True)
            ),
            origins=count,
            samples=samples.shape[1],
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
        )

    def suits(self, sampling: SamplingConfig) -> bool:
        """Whether paths drawn with these settings have the spread that the factors were fitted to."""
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        asked = (sampling.temperature, sampling.top_k or 0, top_p)
        return asked == (self.temperature, self.top_k, self.top_p)

    def apply(self, paths: NDArray[np.float32], last_close: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Paths (B, S, H, F) of prices after the last closes (B,), with their spread scaled.

        A bar moves as a whole: its four prices are multiplied by what its close is, so it stays consistent.
        """
        last = np.asarray(last_close, np.float64)[:, None, None]
        returns = np.log(paths[..., CLOSE] / last)  # (B, S, H)
        wanted = np.clip(self.scale(returns), -_FARTHEST, _FARTHEST)
        scaled = paths.copy()
        scaled[..., :PRICES] *= np.exp(wanted - returns)[..., None]
        return scaled

    def scale(self, returns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log returns (B, S, H) of paths, each moved along the line from the median by the factor of its rank.

        Outward from the median no path ends before its neighbour within, so their order is kept at every step.
        """
        count, horizon = returns.shape[1:]
        order = np.argsort(returns, axis=1, kind="stable")
        ranked = np.take_along_axis(returns, order, axis=1)
        middle = np.median(ranked, axis=1, keepdims=True)
        moved = middle + self._by_rank(count, horizon) * (ranked - middle)
        lower, upper = moved[:, : count // 2], moved[:, count // 2 :]
        lower = np.minimum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
        upper = np.maximum.accumulate(upper, axis=1)
        scaled = np.empty_like(moved)
        np.put_along_axis(scaled, order, np.concatenate([lower, upper], axis=1), axis=1)
        return scaled

    def _by_rank(self, count: int, horizon: int) -> NDArray[np.float64]:
        """Factors (S, H) of the lowest to the highest of `count` paths: linear between the levels, constant beyond.

        A path's level is that of the central interval whose end it is: numpy's quantiles, by which the factors are
        fitted and forecasts are scored, put rank r = 0, 1, ... at r / (S - 1).
        """
        level = np.abs(2 * np.arange(count) / max(count - 1, 1) - 1)
        steps = np.minimum(np.arange(horizon), len(self.factors[0]) - 1)
        known = np.array(self.factors)[:, steps]  # (L, H)
        return np.stack([np.interp(level, self.levels, column) for column in known.T], axis=1)

    def save(self, folder: Path) -> None:
        """Write calibration.json into a predictor's folder."""
        write_json(folder / CALIBRATION_FILE, {"version": _VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What calibration.json in a predictor's folder says; None where there is none."""
        path = Path(folder) / CALIBRATION_FILE
        if not path.exists():
            return None
        told = read_json(path)
        try:
            if (version := told.pop("version")) != _VERSION:
                raise ValueError(f"version {version}")
            levels = tuple(float(level) for level in told.pop("levels"))
            factors = tuple(tuple(float(factor) for factor in row) for row in told.pop("factors"))
            return cls(levels=levels, factors=factors, **told)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected a calibration of version {_VERSION} in {path}, found something else ({error}); "
                "calibrate again or delete it"
            ) from error


def fewest_origins(level: float) -> int:
    """The fewest origins with which a conformal factor exists."""
    return math.ceil(level / (1 - level) - 1e-9)


def _windows(horizon: int) -> list[slice]:
    """For each step, the steps whose ratios are pooled for it."""
    reach = max(1, horizon // 6)
    return [slice(max(0, step - reach), step + reach + 1) for step in range(horizon)]


def _ratios(samples: NDArray[np.float64], realised: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(N, H) smallest factor with which each central interval would have covered the truth."""
    low, middle, high = np.quantile(samples, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
    return np.maximum(_ratio(realised - middle, high - middle), _ratio(middle - realised, middle - low))


def _conformal(ratios: NDArray[np.float64], level: float) -> float:
    """The factor from ratios (N, W): as if a new origin's were infinite and of the same weight."""
    count, steps = ratios.shape
    index = math.ceil(level * (count + 1) * steps - 1e-9) - 1
    return float(np.clip(np.sort(ratios, axis=None)[index], _NARROWEST, _WIDEST))


def _ratio(miss: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    """miss / width; 0 where there is no miss, infinite where there is one and no width."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(miss <= 0, 0.0, miss / width)
