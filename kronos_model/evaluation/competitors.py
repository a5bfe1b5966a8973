"""What is compared: anything that turns the past of a window into sample paths, and what is made of these.

Shapes: B origins, C bars of lookback, K >= C bars of history, H steps, S sample paths, F=6 features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Context, Forecast
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.scores import BLENDS, RAW, REFERENCES_POOL, STAGES
from kronos_model.forecaster import Forecaster
from kronos_model.pool import member_of
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import REFERENCES, references_pool
from kronos_model.sampling import SamplingConfig

__all__ = [
    "Competitor",
    "LastValue",
    "ModelCompetitor",
    "blend_weights",
    "stages",
    "variant_names",
    "variants",
]


class Competitor(Protocol):
    """A forecaster with a name. The same context must give the same paths."""

    @property
    def name(self) -> str:
        """The name its scores go by."""
        ...

    def forecast(self, context: Context) -> Forecast:
        """Sample paths (B, S, H, F) in prices, and the share of bars that had to be made consistent."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelCompetitor:
    """A Kronos model. Two of them with the same seed draw from the same random numbers at each origin."""

    name: str
    forecaster: Forecaster
    config: EvaluationConfig
    seed: int

    @property
    def postprocess(self) -> PostProcess | None:
        """What happens to its paths, if anything does."""
        return self.forecaster.postprocess if self.config.postprocess else None

    @property
    def sampling(self) -> SamplingConfig:
        """How its paths are drawn: as its post-processing was fitted for, or as the evaluation says.

        Where the pool needs more of them for the network's median than are scored, so many.
        """
        if (known := self.postprocess) is not None:
            return known.sampling(max(self.config.samples, known.network_paths(self.config.samples)))
        return SamplingConfig(
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            samples=self.config.samples,
        )

    def forecast(self, context: Context) -> Forecast:
        """Paths as the model draws them; `variants` has them after post-processing too."""
        return self.forecaster.paths(
            context.features,
            context.open_time,
            context.future_open_time,
            context.series,
            config=self.sampling,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class LastValue:
    """The random walk's point forecast: every coming bar stays at the last close; the reference of skill."""

    name: str = "last_value"

    def forecast(self, context: Context) -> Forecast:
        batch, horizon = context.future_open_time.shape
        last = context.features[:, -1].copy()  # (B, F)
        last[:, :3] = last[:, 3:4]  # open, high and low of a market that stays at its close
        paths = np.broadcast_to(last[:, None, None], (batch, 2, horizon, last.shape[-1]))
        return Forecast(paths=np.ascontiguousarray(paths), violation_rate=np.zeros(batch))


def variant_names(competitors: Sequence[Competitor]) -> tuple[str, ...]:
    """Under which names the paths of these competitors are scored.

    A network goes by its name for what it is alone, after location and its own spread; with a suffix for what it draws
    where that differs; and by the name of its blend with the references where it may serve so.
    """
    names: list[str] = []
    for one in competitors:
        names.append(one.name)
        if postprocess := _postprocess(one):
            names += [one.name + RAW] if _moves(postprocess) else []
            names += [BLENDS[one.name]] if one.name in BLENDS else []
    return (*names, *([REFERENCES_POOL] if _references(competitors) else []))


def variants(
    competitors: Sequence[Competitor], drawn: Mapping[str, Forecast], last_close: NDArray[np.float64]
) -> dict[str, Forecast]:
    """Forecasts by those names, in their order, from what each competitor drew: every path is sampled once."""
    made: dict[str, Forecast] = {}
    for one in competitors:
        forecast = made[one.name] = _scored(one, drawn[one.name])
        if postprocess := _postprocess(one):
            if _moves(postprocess):
                made[one.name] = replace(forecast, paths=postprocess.alone(forecast.paths, last_close))
                made[one.name + RAW] = forecast
            if one.name in BLENDS:
                made[BLENDS[one.name]] = _blend(one, postprocess, drawn, last_close)
    if references := _references(competitors):
        made[REFERENCES_POOL] = references_pool({name: drawn[name].paths for name in references})
    return made


def stages(
    competitors: Sequence[Competitor], drawn: Mapping[str, Forecast], last_close: NDArray[np.float64]
) -> dict[str, Forecast]:
    """Paths of the challenger after each of STAGES; nothing without one that is post-processed."""
    for one in competitors:
        postprocess = _postprocess(one)
        if one.name == "challenger" and postprocess is not None:
            unscaled = replace(postprocess, spread=None, spread_alone=None)
            raw = _scored(one, drawn[one.name])
            located = replace(raw, paths=unscaled.alone(raw.paths, last_close))
            blends = (_blend(one, each, drawn, last_close) for each in (unscaled, postprocess))
            return dict(zip(STAGES, (raw, located, *blends), strict=True))
    return {}


def blend_weights(competitors: Sequence[Competitor]) -> dict[str, dict[str, float]]:
    """Of the members of each blend, by its name."""
    fitted = {one.name: _postprocess(one) for one in competitors if one.name in BLENDS}
    return {BLENDS[name]: one.pool for name, one in fitted.items() if one is not None}


def _blend(
    network: Competitor,
    postprocess: PostProcess,
    drawn: Mapping[str, Forecast],
    last_close: NDArray[np.float64],
) -> Forecast:
    """The pool of a network and the references, of as many paths as are scored."""
    members = {name: network.name if name == NETWORK else name for name in postprocess.members}
    paths = {member: drawn[name].paths for member, name in members.items() if name in drawn}
    samples = _scored(network, drawn[network.name]).paths.shape[1]
    dealt = postprocess.deal(samples)
    broken = drawn[network.name].violation_rate * dealt[NETWORK] / samples
    blended = postprocess.blend(paths, last_close, samples=samples)
    return Forecast(paths=blended, violation_rate=broken, member=member_of(dealt))


def _scored(competitor: Competitor, drawn: Forecast) -> Forecast:
    """The first paths that a competitor drew, as many as are scored."""
    if not isinstance(competitor, ModelCompetitor):
        return drawn
    return replace(drawn, paths=drawn.paths[:, : competitor.config.samples])


def _postprocess(competitor: Competitor) -> PostProcess | None:
    return competitor.postprocess if isinstance(competitor, ModelCompetitor) else None


def _moves(postprocess: PostProcess) -> bool:
    """Whether it changes the network's paths before they are pooled."""
    return postprocess.spread_alone is not None or any(share < 1 for share in postprocess.location)


def _references(competitors: Sequence[Competitor]) -> tuple[str, ...]:
    """The members of the references' pool among the competitors, in its order."""
    present = {one.name for one in competitors}
    return tuple(name for name in REFERENCES if name in present)
