"""Conformal scaling of the spread of sample paths: how much wider or narrower a model's fan should have been.

Sampled fans of Kronos are too narrow more often than not. At each step the distance of every path from the median
path is multiplied by one factor, chosen on validation origins so that the central interval covers what it says.
Shapes: N origins, B series, S sample paths, H steps, F=6 features.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError, ModelError
from kronos_model.features import FEATURES
from kronos_model.files import CALIBRATION_FILE, read_json, write_json
from kronos_model.sampling import SamplingConfig

__all__ = ["Calibration", "fewest_origins"]

_VERSION = 1
_CLOSE = FEATURES.index("close")
_PRICES = 4
_NARROWEST, _WIDEST = 0.1, 10.0
_FARTHEST = math.log(
    1e6
)  # no path is moved further from the last close than a millionth or a million times it


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Factors of the spread per step, and what they were fitted for."""

    level: float
    """Share of the central interval that the factors were chosen for."""
    factors: tuple[float, ...]
    """Of the spread at step 1, 2, ...; steps beyond the last one use the last."""
    origins: int
    """Validation origins behind each factor."""
    samples: int
    """Sample paths per origin there."""
    temperature: float
    """Sampling settings that the factors hold for."""
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if not self.factors or not all(0 < factor < math.inf for factor in self.factors):
            raise ValueError(f"factors: expected numbers above 0, one per step, found {self.factors}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a share between 0 and 1, found {self.level}; 0.9 is usual")

    @classmethod
    def fit(
        cls,
        samples: NDArray[np.float64],
        realised: NDArray[np.float64],
        sampling: SamplingConfig,
        *,
        level: float = 0.9,
    ) -> Self:
        """From log returns since the last close of paths (N, S, H) and of what happened (N, H).

        Split conformal prediction: the factor of a step is the ceil((N + 1) level)-th smallest factor with which
        an origin's interval would just have covered the truth. Where origins are exchangeable the scaled interval
        of a new one covers with at least that probability.
        """
        count = len(samples)
        if count < fewest_origins(level):
            raise DataError(
                f"a calibration at {level} needs at least {fewest_origins(level)} origins, found {count}; "
                "widen the validation range"
            )
        low, middle, high = np.quantile(samples, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
        above = _ratio(realised - middle, high - middle)
        below = _ratio(middle - realised, middle - low)
        needed = np.sort(np.maximum(above, below), axis=0)[math.ceil((count + 1) * level) - 1]  # (H,)
        return cls(
            level=level,
            factors=tuple(np.clip(needed, _NARROWEST, _WIDEST).tolist()),
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
        scale = np.asarray(last_close, np.float64)[:, None, None]
        returns = np.log(paths[..., _CLOSE] / scale)  # (B, S, H)
        middle = np.median(returns, axis=1, keepdims=True)
        horizon = paths.shape[2]
        factors = np.array([*self.factors, *[self.factors[-1]] * horizon][:horizon])
        wanted = np.clip(middle + factors * (returns - middle), -_FARTHEST, _FARTHEST)
        scaled = paths.copy()
        scaled[..., :_PRICES] *= np.exp(wanted - returns)[..., None]
        return scaled

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
            return cls._from(told)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected a calibration of version {_VERSION} in {path}, found something else ({error}); "
                "calibrate again or delete it"
            ) from error

    @classmethod
    def _from(cls, told: Mapping[str, Any]) -> Self:
        values = dict(told)
        if values.pop("version") != _VERSION:
            raise ValueError(f"version {told['version']}")
        return cls(**{**values, "factors": tuple(float(factor) for factor in values["factors"])})


def fewest_origins(level: float) -> int:
    """The fewest origins with which a conformal factor exists."""
    return math.ceil(level / (1 - level) - 1e-9)


def _ratio(miss: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    """miss / width; 0 where there is no miss, infinite where there is one and no width."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(miss <= 0, 0.0, miss / width)
