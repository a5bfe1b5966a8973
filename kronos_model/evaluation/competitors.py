"""What is compared: anything that turns the past of a window into sample paths.

Shapes: B origins, C bars of lookback, K >= C bars of history, H steps, S sample paths, F=6 features.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Context, Forecast
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.forecaster import Forecaster
from kronos_model.postprocess import PostProcess
from kronos_model.sampling import SamplingConfig

__all__ = [
    "RAW",
    "Competitor",
    "LastValue",
    "ModelCompetitor",
    "variant_names",
    "variants",
]

RAW = "_raw"
"""Ends the name of a model's forecasts as they were before post-processing."""


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
        found = self.forecaster.postprocess
        return found if self.config.calibrate and found is not None and found.suits(self.sampling) else None

    @property
    def sampling(self) -> SamplingConfig:
        """How its paths are drawn."""
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
            postprocessed=False,
        )


def variant_names(competitor: Competitor) -> tuple[str, ...]:
    """Under which names a competitor is scored: a post-processed model also as it was before, with a suffix."""
    if isinstance(competitor, ModelCompetitor) and competitor.postprocess is not None:
        return (competitor.name, competitor.name + RAW)
    return (competitor.name,)


def variants(
    competitor: Competitor, forecast: Forecast, last_close: NDArray[np.float64]
) -> dict[str, Forecast]:
    """A competitor's forecast by those names: its paths are sampled once."""
    if isinstance(competitor, ModelCompetitor) and (postprocess := competitor.postprocess) is not None:
        alone = replace(forecast, paths=postprocess.alone(forecast.paths, last_close))
        return {competitor.name: alone, competitor.name + RAW: forecast}
    return {competitor.name: forecast}


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
