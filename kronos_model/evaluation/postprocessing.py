"""Post-processing of a network from its own and the references' forecasts of the validation range.

Few origins and paths choose how it samples; many, drawn so, are what location, weights and spread are fitted to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.competitors import Competitor, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.fit_postprocess import ChosenSampling, choose_sampling, fit_to_returns
from kronos_model.evaluation.walk_forward import draw_returns
from kronos_model.postprocess import NETWORK, PostProcess, Step
from kronos_model.references import REFERENCES, make_references
from kronos_model.sampling_config import SamplingConfig
from kronos_model.windows import WindowDataset

__all__ = ["candidates", "fit_postprocess"]

_PATHS = 8  # of a candidate per origin: the fair CRPS asks for no more, and there are many candidates

Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class _Candidate(ModelCompetitor):
    """The network as it would sample with other settings."""

    sampled: SamplingConfig

    @property
    def postprocess(self) -> None:
        """None yet."""

    @property
    def sampling(self) -> SamplingConfig:
        return self.sampled


def fit_postprocess(
    dataset: WindowDataset,
    model: ModelCompetitor,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[PostProcess, list[str]]:
    """What the validation range says of a network, and a sentence for each reference that cannot be had here."""
    config = replace(model.config, stride=None, origins=model.config.postprocess_origins)
    chosen = _choose(dataset, model, config, progress)
    names = (*REFERENCES, *(("garch",) if "garch" in config.baselines else ()))
    references, notes = make_references(
        dataset.lookback, samples=config.samples, seed=model.seed, names=names
    )
    network = _candidate(model, NETWORK, replace(chosen.sampling, samples=config.samples))
    returns, realised, origin_ms = draw_returns(
        dataset, [network, *references.values()], config, split="validation", progress=progress
    )
    found = fit_to_returns(
        returns,
        realised,
        origin_ms,
        sampling=network.sampled,
        lookback=dataset.lookback,
        interval=str(dataset.manifest["interval"]),
        chosen=chosen.step,
    )
    return found, notes


def candidates(config: EvaluationConfig) -> list[SamplingConfig]:
    """The configured sampling settings first, then those to try."""
    paths = min(_PATHS, config.samples)
    given = SamplingConfig(
        temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, samples=paths
    )
    tried: Iterator[tuple[float, float]] = product(config.try_temperatures, config.try_top_p)
    grid = [replace(given, temperature=temperature, top_p=top_p) for temperature, top_p in tried]
    return list(dict.fromkeys([given, *grid]))


def _choose(
    dataset: WindowDataset, model: ModelCompetitor, config: EvaluationConfig, progress: Progress
) -> ChosenSampling:
    """The best of the candidates, or the given one."""
    given, *others = candidates(config)
    if not others or not config.sampling_origins:
        step = Step(name="sampling", kept=False, reason="not tried: it is switched off")
        return ChosenSampling(sampling=given, step=step)
    few = replace(config, origins=min(config.sampling_origins, config.origins))
    names = {f"candidate {at}": one for at, one in enumerate((given, *others))}
    drawing: Sequence[Competitor] = [_candidate(model, name, one) for name, one in names.items()]
    returns, realised, origin_ms = draw_returns(dataset, drawing, few, split="validation", progress=progress)
    paths: dict[SamplingConfig, NDArray[np.float64]] = {one: returns[name] for name, one in names.items()}
    return choose_sampling(paths, realised, origin_ms)


def _candidate(model: ModelCompetitor, name: str, sampling: SamplingConfig) -> _Candidate:
    return _Candidate(
        name=name, forecaster=model.forecaster, config=model.config, seed=model.seed, sampled=sampling
    )
