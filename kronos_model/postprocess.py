"""What happens to paths between their drawing and their serving, as one stored object.

Fitted on validation origins by kronos_model.evaluation.fit_postprocess, stored beside the predictor, and applied by
whoever forecasts: the network's median move is shrunk towards the last close (location), its paths are pooled with
those of the references (blend), and the pool's fan is widened or narrowed (spread). On numpy alone.
Shapes: B series, S sample paths, H steps, F=6 features.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import ModelError
from kronos_model.features import CLOSE, PRICES
from kronos_model.files import CALIBRATION_FILE, METADATA_FILE, POSTPROCESS_FILE, read_json, write_json
from kronos_model.pool import deal, pooled
from kronos_model.sampling_config import SamplingConfig
from kronos_model.settings import Count, Counted, NotNegative, TopP, settings
from kronos_model.spread import Spread

__all__ = [
    "FEWEST_FOR_MEDIAN",
    "NETWORK",
    "PostProcess",
    "Spread",
    "Step",
    "located",
    "location_at",
    "network_paths",
]

NETWORK = "network"
"""The member of the pool that is the Kronos pair."""
FEWEST_FOR_MEDIAN = 16
"""Paths of the network that its median is taken of where its location is shrunk, however few the pool takes: the median
of two or three lies on a path, and taking it away would take their spread with it; of sixteen it costs 1 % of it."""
_VERSION = 1
_CALIBRATION_VERSION = 2  # of calibration.json, in folders from before post-processing
_FARTHEST = math.log(1e6)  # no path is moved further than to a millionth or a million times the last close

Floats = NDArray[np.float64]
Paths = NDArray[np.float32]


@settings
class Step:
    """What was tried on held-out validation origins, and what came of it."""

    name: str
    kept: bool
    reason: str
    """In words, with the figures."""
    before: NotNegative | None = None
    """CRPS of the held-out origins without the step, in basis points; none where it could not be tried."""
    after: NotNegative | None = None
    """The same with it."""


@settings
class PostProcess:
    """How paths are drawn, moved, pooled and scaled, and what that was fitted for."""

    horizon: Count
    lookback: Counted
    """Candles that the network saw; 0 where nobody wrote it down."""
    interval: str
    temperature: NotNegative
    """Sampling settings that all of this holds for."""
    top_k: Counted
    top_p: TopP
    location: tuple[float, ...]
    """What is left of the network's median move, per stretch of the horizon; linear between their middles."""
    members: tuple[str, ...]
    weights: tuple[float, ...]
    """Of the members in the pool; the network is the first."""
    spread: Spread | None
    """Of the pool."""
    spread_alone: Spread | None
    """Of the network alone."""
    origins: Counted
    """Validation origins behind it."""
    samples: Count
    """Sample paths per origin and member there."""
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not self.location or not all(0 <= share <= 1 for share in self.location):
            raise ValueError(f"location: expected shares from 0 to 1, found {self.location}")
        if self.members[:1] != (NETWORK,) or len(set(self.members)) < len(self.members):
            raise ValueError(f"members: expected {NETWORK} first and each once, found {self.members}")
        whole = len(self.weights) == len(self.members) and abs(sum(self.weights) - 1) < 1e-6
        if not whole or min(self.weights) < 0:
            raise ValueError(
                f"weights: expected shares of {self.members} that sum to 1, found {self.weights}"
            )

    @property
    def pool(self) -> dict[str, float]:
        """Weights by member."""
        return dict(zip(self.members, self.weights, strict=True))

    def sampling(self, samples: int) -> SamplingConfig:
        """How the network's paths are drawn."""
        return SamplingConfig(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, samples=samples
        )

    def suits(self, sampling: SamplingConfig) -> bool:
        """Whether paths drawn with these settings are such as this was fitted to."""
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        asked = (sampling.temperature, sampling.top_k or 0, top_p)
        return asked == (self.temperature, self.top_k, self.top_p)

    def check_made_for(self, *, horizon: int, lookback: int, interval: str) -> None:
        """ModelError where it was fitted for another question; a shorter horizon is the beginning of a longer one."""
        known = (self.lookback or lookback, self.interval or interval)
        if (lookback, interval) != known or horizon > self.horizon:
            raise ModelError(
                f"expected post-processing for {horizon} candles of {interval} after {lookback}, found one fitted for "
                f"{self.horizon} candles of {known[1]} after {known[0]}; judge the model again, or forecast as it was "
                "made for"
            )

    def alone(self, paths: Paths, last_close: NDArray[np.floating[Any]]) -> Paths:
        """The network's paths (B, S, H, F) after the last closes (B,): its location shrunk, its own spread scaled."""
        returns = _returns(NETWORK, paths, last_close)
        wanted = self._located(returns)
        return _moved(paths, returns, self.spread_alone.scale(wanted) if self.spread_alone else wanted)

    def deal(self, samples: int) -> dict[str, int]:
        """How many of S paths each member gives to the pool."""
        return deal(self.pool, samples)

    def network_paths(self, samples: int) -> int:
        """How many paths the network draws for a pool of S."""
        return network_paths(self.deal(samples)[NETWORK], self.location)

    def blend(
        self,
        member_paths: Mapping[str, Paths],
        last_close: NDArray[np.floating[Any]],
        *,
        samples: int | None = None,
    ) -> Paths:
        """Paths (B, S, H, F) of the pool, from paths of each member as drawn, after the last closes (B,).

        S is `samples`, or as many as the member with the most has; the members give their first ones. The network's
        median is that of its first network_paths(S), however many are given, so that the same draws make the same
        pool wherever it is made. A member without weight may be missing.
        """
        samples = samples or max(paths.shape[1] for paths in member_paths.values())
        dealt = self.deal(samples)
        needed = {**dealt, NETWORK: self.network_paths(samples)}
        given = {
            name: _first(name, paths, needed[name]) for name, paths in member_paths.items() if dealt.get(name)
        }
        returns = {name: _returns(name, paths, last_close) for name, paths in given.items()}
        drawn = wanted = pooled(returns, dealt)
        if NETWORK in given and min(self.location) < 1:
            wanted = pooled({**returns, NETWORK: self._located(returns[NETWORK])}, dealt)
        if self.spread is not None:
            wanted = self.spread.scale(wanted)
        paths = pooled(given, dealt)
        return paths if wanted is drawn else _moved(paths, drawn, wanted)

    def save(self, folder: Path) -> None:
        """Write postprocess.json into a predictor's folder."""
        write_json(Path(folder) / POSTPROCESS_FILE, {"version": _VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What postprocess.json in a predictor's folder says, or its forerunner calibration.json; None without both."""
        path = Path(folder) / POSTPROCESS_FILE
        if not path.exists():
            return cls._from_calibration(Path(folder))
        told = read_json(path)
        try:
            if (version := told.pop("version")) != _VERSION:
                raise ValueError(f"version {version}")
            for name in ("spread", "spread_alone"):
                told[name] = None if told[name] is None else _spread(**told[name])
            steps = tuple(Step(**step) for step in told.pop("steps"))
            for name in ("location", "members", "weights"):
                told[name] = tuple(told[name])
            return cls(steps=steps, **told)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected post-processing of version {_VERSION} in {path}, found something else ({error}); run a "
                "night, which fits it again"
            ) from error

    @classmethod
    def _from_calibration(cls, folder: Path) -> Self | None:
        """The network alone with a spread, as folders from before post-processing serve."""
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return None
        told = read_json(path)
        metadata = read_json(folder / METADATA_FILE) if (folder / METADATA_FILE).exists() else {}
        try:
            if (version := told["version"]) != _CALIBRATION_VERSION:
                raise ValueError(f"version {version}")
            spread = _spread(told["levels"], told["factors"])
            return cls(
                horizon=len(spread.factors[0]),
                lookback=metadata.get("lookback", 0),
                interval=metadata.get("interval", ""),
                **{name: told[name] for name in ("temperature", "top_k", "top_p", "origins", "samples")},
                location=(1.0,),
                members=(NETWORK,),
                weights=(1.0,),
                spread=spread,
                spread_alone=spread,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected a calibration of version {_CALIBRATION_VERSION} in {path}, found something else ({error}); "
                "run a night, which fits post-processing, or delete it"
            ) from error

    def _located(self, returns: Floats) -> Floats:
        return located(returns, location_at(self.location, self.horizon)[: returns.shape[-1]])


def network_paths(taken: int, location: tuple[float, ...]) -> int:
    """How many paths of the network give `taken` of them, and its median where that is moved."""
    moved = any(share < 1 for share in location)
    return max(taken, FEWEST_FOR_MEDIAN) if taken and moved else taken


def location_at(location: tuple[float, ...], horizon: int) -> Floats:
    """What is left of the median move at each step (H,): linear between the middles of equal stretches."""
    middles = (np.arange(len(location)) + 0.5) * horizon / len(location) - 0.5
    return np.asarray(np.interp(np.arange(horizon), middles, location))


def located(returns: Floats, kept: Floats) -> Floats:
    """Log returns (B, S, H) with `kept` (H,) of their median move left; each path moves by the same.

    What is taken away is the median of some paths, evenly chosen, (1 - kept) / sqrt(2) of all. The median of all of
    them would pull each towards the last close by its own noise: draws that are no longer independent, whose fair
    CRPS seems better by 0.35 / S of itself without any knowledge. The median of so many errs by just as much more in
    a normal fan, so that the S paths score as S draws of the fan with the moved median do.
    """
    beyond = returns[..., kept.shape[-1] :].shape[-1]
    kept = np.concatenate([kept, np.full(beyond, kept[-1])])
    count = returns.shape[1]
    chosen = np.maximum(np.floor((1 - kept) / math.sqrt(2) * count), 1).astype(np.int64)  # (H,)
    median = np.empty_like(returns[:, :1])
    for number in np.unique(chosen):
        steps, rows = chosen == number, np.linspace(0, count - 1, number).round().astype(np.int64)
        some = np.sort(returns[:, rows][..., steps], axis=1)
        median[:, 0, steps] = (some[:, (number - 1) // 2] + some[:, number // 2]) / 2
    return np.asarray(returns - (1 - kept) * median)


def _first(name: str, paths: Paths, wanted: int) -> Paths:
    if (found := paths.shape[1]) < wanted:
        raise ModelError(f"expected {wanted} paths of {name} for the pool, found {found}; draw as many")
    return paths[:, :wanted]


def _column(last_close: NDArray[np.floating[Any]]) -> Floats:
    return np.asarray(last_close, np.float64)[:, None, None]


def _returns(name: str, paths: Paths, last_close: NDArray[np.floating[Any]]) -> Floats:
    """Log returns (B, S, H) of a member's closes."""
    close = paths[..., CLOSE].astype(np.float64)
    if not (np.isfinite(close) & (close > 0)).all():
        raise ModelError(
            f"expected finite closes above 0 in the paths of {name}, found others; its weights or the candles it saw "
            "are broken"
        )
    return np.asarray(np.log(close / _column(last_close)))


def _moved(paths: Paths, returns: Floats, wanted: Floats) -> Paths:
    """Paths whose closes have other log returns (B, S, H).

    A bar moves as a whole: its four prices are multiplied by what its close is, so it stays consistent.
    """
    factor = np.exp(np.clip(wanted, -_FARTHEST, _FARTHEST) - returns)
    moved = paths.copy()
    moved[..., :PRICES] *= factor[..., None]
    return moved


def _spread(levels: list[float], factors: list[list[float]]) -> Spread:
    """As JSON holds it."""
    return Spread(levels=tuple(map(float, levels)), factors=tuple(tuple(map(float, row)) for row in factors))
