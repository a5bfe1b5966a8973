"""What is served, through one door: the command line, the service and the MLflow model all forecast with a Served.

It is a network with its post-processing, or the references' pool where no network has earned a place.
Shapes: B series, C bars of lookback, K >= C bars of history, S sample paths, H steps, F=6 features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kronos_model.context import Context, Forecast
from kronos_model.errors import ModelError
from kronos_model.features import CLOSE, PRICES
from kronos_model.forecaster import Forecaster
from kronos_model.normalise import Normaliser
from kronos_model.pool import equal, member_of
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import make_references, references_pool
from kronos_model.sampling_config import SamplingConfig
from kronos_model.served_words import REFERENCES_MODEL

__all__ = ["Known", "Served", "context_of"]

Paths = NDArray[np.float32]
Progress = Callable[[int, int], object]


class Known(Protocol):
    """What is known of one series where its forecast begins, as storage.past.Past has it."""

    @property
    def name(self) -> str:
        """Of the series."""
        ...

    @property
    def features(self) -> NDArray[np.float32]:
        """(C, F) raw."""
        ...

    @property
    def open_time(self) -> NDArray[np.int64]:
        """(C,) ms."""
        ...

    @property
    def future(self) -> NDArray[np.int64]:
        """(H,) ms."""
        ...

    @property
    def history(self) -> NDArray[np.float64]:
        """(K,) closes."""
        ...


def context_of(pasts: Sequence[Known]) -> Context:
    """Several series of one shape side by side."""
    return Context(
        features=np.stack([past.features for past in pasts]),
        open_time=np.stack([past.open_time for past in pasts]),
        future_open_time=np.stack([past.future for past in pasts]),
        series=[past.name for past in pasts],
        history=np.stack([past.history for past in pasts]),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """A network with what happens to its paths, or the references alone."""

    name: str
    """In words: who it is."""
    forecaster: Forecaster | None
    """None: the references alone."""
    weights: Mapping[str, float]
    """Of the members in the pool."""
    notes: tuple[str, ...] = ()
    """A sentence for each reference that cannot be had."""

    @classmethod
    def load(
        cls,
        tokenizer: Path,
        predictor: Path,
        *,
        name: str,
        normaliser: Normaliser | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """The network in two folders with the post-processing beside it; without one it serves as it draws."""
        return cls.of(Forecaster.load(tokenizer, predictor, normaliser=normaliser, device=device), name=name)

    @classmethod
    def of(cls, forecaster: Forecaster, *, name: str) -> Self:
        """A network that is loaded already."""
        known = forecaster.postprocess
        return cls(name=name, forecaster=forecaster, weights={NETWORK: 1.0} if known is None else known.pool)

    @classmethod
    def references(cls, lookback: int) -> Self:
        """The equal pool of the references that so many candles of lookback allow."""
        members, notes = make_references(lookback, samples=1, seed=0)
        return cls(name=REFERENCES_MODEL, forecaster=None, weights=equal(tuple(members)), notes=tuple(notes))

    @property
    def postprocess(self) -> PostProcess | None:
        """What was fitted for the network."""
        return None if self.forecaster is None else self.forecaster.postprocess

    def as_judged(self, asked: SamplingConfig) -> SamplingConfig:
        """The same, drawn as its post-processing was fitted for, if there is one."""
        known = self.postprocess
        if known is None:
            return asked
        return replace(asked, temperature=known.temperature, top_k=known.top_k, top_p=known.top_p)

    def applied(self, config: SamplingConfig) -> PostProcess | None:
        """The post-processing of paths that are drawn so; None where they are served as the network draws them."""
        known = self.postprocess
        return known if known is not None and known.suits(config) else None

    def shares(self, config: SamplingConfig) -> dict[str, float]:
        """What each member gives to paths that are drawn so."""
        return dict(self.weights) if self.forecaster is None or self.applied(config) else {NETWORK: 1.0}

    def paths(
        self,
        context: Context,
        config: SamplingConfig,
        seed: int | Sequence[int],
        *,
        progress: Progress = lambda done, total: None,
    ) -> Forecast:
        """Continue every row by config.samples paths; a row's depend on its name, origin and seed alone.

        The references draw as many paths each, as in the evaluation, of which the pool takes the first; the network
        draws what the pool takes of it, and enough for its median. Settings that the post-processing was not fitted for
        give the network as it draws.
        """
        seeds = [seed] * len(context.series) if isinstance(seed, int) else list(seed)
        if self.forecaster is None:
            return references_pool(_references(tuple(self.weights), context, config.samples, seeds))
        if self.forecaster.prices_only:
            context = _without_volumes(context)
        known = self.applied(config)
        if known is None:
            return _by_network(self.forecaster, context, config, seeds, progress)
        return _blended(self.forecaster, known, context, config, seeds, progress)


def _blended(
    network: Forecaster,
    known: PostProcess,
    context: Context,
    config: SamplingConfig,
    seeds: Sequence[int],
    progress: Progress,
) -> Forecast:
    """The pool of network and references."""
    dealt = known.deal(config.samples)
    references = [name for name, count in dealt.items() if name != NETWORK and count]
    if references:
        lookback, horizon = context.features.shape[1], context.future_open_time.shape[1]
        known.check_made_for(horizon=horizon, lookback=lookback, interval=known.interval)
    members = _references(references, context, config.samples, seeds)
    broken = np.zeros(len(context.series))
    if count := dealt[NETWORK]:
        drawn = replace(config, samples=known.network_paths(config.samples))
        forecast = _by_network(network, context, drawn, seeds, progress)
        members[NETWORK] = forecast.paths
        broken = forecast.violation_rate * count / config.samples
    paths = known.blend(members, context.features[:, -1, CLOSE], samples=config.samples)
    return Forecast(paths=paths, violation_rate=broken, member=member_of(dealt))


def _by_network(
    network: Forecaster, context: Context, config: SamplingConfig, seeds: Sequence[int], progress: Progress
) -> Forecast:
    """As it draws."""
    return network.paths(
        context.features,
        context.open_time,
        context.future_open_time,
        context.series,
        config=config,
        seed=seeds,
        progress=progress,
    )


def _references(
    names: Sequence[str], context: Context, samples: int, seeds: Sequence[int]
) -> dict[str, Paths]:
    """Paths (B, S, H, F) of each of these references."""
    batch, horizon = context.future_open_time.shape
    shape = (batch, samples, horizon, context.features.shape[-1])
    paths = {name: np.empty(shape, np.float32) for name in names}
    for seed in dict.fromkeys(seeds):
        rows = [row for row, one in enumerate(seeds) if one == seed]
        members, missing = make_references(context.features.shape[1], samples=samples, seed=seed, names=names)
        if missing:
            raise ModelError(f"expected every reference that the pool was fitted with: {'; '.join(missing)}")
        for name, member in members.items():
            paths[name][rows] = member.forecast(_rows(context, rows)).paths
    return paths


def _rows(context: Context, rows: Sequence[int]) -> Context:
    """Some of the series."""
    if len(rows) == len(context.series):
        return context
    return Context(
        features=context.features[rows],
        open_time=context.open_time[rows],
        future_open_time=context.future_open_time[rows],
        series=[context.series[row] for row in rows],
        history=context.history[rows],
    )


def _without_volumes(context: Context) -> Context:
    """What a network saw that learned from prices alone, for its references too."""
    features = context.features.copy()
    features[..., PRICES:] = 0
    return replace(context, features=features)
