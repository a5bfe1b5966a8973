"""Small frozen references that tasks hand to each other: a path, a digest, a few counts; never frames or tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from storage.dataset import BuiltDataset

if TYPE_CHECKING:  # costs an import of torch
    from kronos_model.hub import Lineage

__all__ = [
    "BuiltDataset",
    "FailureRef",
    "ForecastRef",
    "ForecastsRef",
    "IngestRef",
    "PairRef",
    "PublishedRef",
    "RunRef",
    "ScoresRef",
    "SeriesRef",
    "TrainedRef",
    "VerdictRef",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesRef:
    """One series of the lake after an ingest."""

    series: str  # market:SYMBOL
    interval: str
    rows: int
    first_ms: int
    last_ms: int
    added: int
    requests: int
    holes: int
    zips: int = 0
    failed_parts: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRef:
    """A series that an ingest could not bring up to date, and why."""

    series: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestRef:
    """What an ingest did. Report and picture are missing where nothing was new."""

    series: tuple[SeriesRef, ...]
    failures: tuple[FailureRef, ...]
    report: str | None
    picture: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRef:
    """A tokenizer and the predictor that belongs to it, as folders."""

    tokenizer: str
    tokenizer_digest: str
    predictor: str
    predictor_digest: str
    origin: str  # where the weights came from, in words
    lineage: Lineage = "unknown"  # of the predictor

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """As a night's summary holds it; an older one says more."""
        return cls(**{one.name: told[one.name] for one in fields(cls) if one.name in told})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRef:
    """A finished training job and its best model."""

    stage: Literal["tokenizer", "predictor"]
    job: str
    best: str
    digest: str
    trained: bool  # False when the job had been finished before
    steps: int
    epochs: int
    initial_loss: float
    best_loss: float
    best_step: int
    stopped: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoresRef:
    """A finished walk-forward."""

    path: str
    origins: int
    leaderboard: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()  # what whoever reads the numbers must know


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictRef:
    """The gate's decision."""

    verdict: Literal["promote", "keep", "reject"]
    reasons: tuple[str, ...]
    served: str = ""  # whose forecast serves from now on, by its name in the leaderboard


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRef:
    """One repository as published: a folder under hub/, and on the Hub where a namespace was given."""

    name: str
    path: str
    local_revision: str
    repo_id: str = ""  # on the Hub, as all below
    url: str = ""
    revision: str = ""
    uploaded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastRef:
    """One stored forecast."""

    series: str
    interval: str
    model_digest: str
    path: str
    figure: str
    origin_ms: int
    last_close: float
    horizon_end_ms: int
    close_mean: float
    close_low: float  # 5 % quantile at the last step
    close_high: float  # 95 %
    probability_up: float
    expected_return: float  # over the horizon, as the mean of the paths has it
    volatility: float  # of the log-return over the horizon
    model: str
    samples: int  # paths
    made: bool  # False when the same forecast was stored before


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastsRef:
    """What one call of the sampler brought."""

    forecasts: tuple[ForecastRef, ...]
    failures: tuple[FailureRef, ...]
    seconds: float  # of sampling alone; 0 where every forecast was stored before


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef:
    """An MLflow run."""

    run_id: str
    experiment_id: str
    uri: str
    url: str = ""
