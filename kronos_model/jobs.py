"""What a training job is told: job.json, its settings and its references by path and digest.

A job directory holds job.json, metrics.jsonl, checkpoint/, best/ and, once finished, result.json.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from kronos_model.errors import ModelError
from kronos_model.files import read_json, write_json

__all__ = ["Job", "Reference", "Stage", "StageConfig", "read_job", "write_job"]

Stage = Literal["tokenizer", "predictor"]
Precision = Literal["auto", "float32", "bfloat16"]
Targets = Literal["attention", "mlp", "all"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """How one stage trains."""

    epochs: int = 5
    """Passes over the training windows; shorter ones where steps_per_epoch caps them."""

    steps_per_epoch: int | None = None
    """At most this many optimizer steps per epoch; a capped epoch continues where the last one left off, so
    that all windows get seen. None: one full pass."""

    batch_size: int = 32
    """Windows per forward pass, over all processes."""

    accumulation: int = 1
    """Forward passes per optimizer step; an optimizer step sees batch_size x accumulation windows."""

    learning_rate: float = 2e-6
    """Peak of the schedule: linear warm-up, then cosine to zero."""

    weight_decay: float = 0.1
    """AdamW's decay, on matrices and embeddings only."""

    beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""

    beta2: float = 0.95
    """AdamW's decay of the gradient's square."""

    warmup_share: float = 0.03
    """Share of all steps spent in warm-up."""

    clip_norm: float = 3.0
    """Gradients are scaled down to this norm."""

    patience: int | None = 5
    """Epochs without a better validation loss after which training stops. None: never."""

    precision: Precision = "auto"
    """auto: bfloat16 autocast for the predictor on CUDA devices that support it, else float32 (rounding flips
    the tokenizer's bits). bfloat16 also pays on CPUs with AVX512-BF16 or AMX."""

    compile: bool = False
    """Let torch.compile fuse the forward pass: minutes of compiling for faster steps, on GPUs above all."""

    recompute: bool = False
    """Activation checkpointing: compute each predictor block again in the backward pass instead of remembering
    what is inside it; less memory, about a third more time."""

    frozen_layers: int = 0
    """Leave this many bottom blocks, and the embeddings below them, as they are."""

    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of the weights; they are merged into best/. 0: all weights."""

    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""

    lora_targets: Targets = "all"
    """Projections that get adapters: of attention, of the feed-forward (mlp), or all of both."""

    validation_windows: int | None = None
    """At most this many validation windows, evenly spaced. None: all."""

    checkpoint_steps: int = 200
    """Optimizer steps between checkpoints; every epoch also ends with one."""

    token_cache_mb: int = 8192
    """Largest size (MiB) of a split's tokens on disk; above it windows are encoded as they are needed."""

    def __post_init__(self) -> None:
        _at_least_one("epochs", self.epochs)
        _at_least_one("batch_size", self.batch_size)
        _at_least_one("accumulation", self.accumulation)
        _at_least_one("checkpoint_steps", self.checkpoint_steps)
        for name in ("steps_per_epoch", "patience", "validation_windows"):
            value = getattr(self, name)
            if value is not None:
                _at_least_one(name, value)
        for name in ("beta1", "beta2", "warmup_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number from 0 to below 1, found {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"weight_decay: expected 0 or more, found {self.weight_decay}; upstream uses 0.1"
            )
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision: expected one of {', '.join(get_args(Precision))}, found {self.precision!r}"
            )
        for name in ("frozen_layers", "lora_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}; 0 turns it off")
        if not 0 < self.lora_alpha < float("inf"):
            raise ValueError(f"lora_alpha: expected a number above 0, found {self.lora_alpha}")
        if self.lora_targets not in get_args(Targets):
            raise ValueError(
                f"lora_targets: expected one of {', '.join(get_args(Targets))}, found {self.lora_targets!r}"
            )
        if self.token_cache_mb < 0:
            raise ValueError(f"token_cache_mb: expected 0 or more MiB, found {self.token_cache_mb}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A folder and the digest it is expected to have."""

    path: str
    """Absolute, or relative to the job directory."""

    digest: str
    """A dataset's digest from its manifest, a model's from kronos_model.files.model_digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything a training process needs to know."""

    stage: Stage
    """tokenizer: trains the tokenizer. predictor: trains the predictor on the frozen tokenizer's tokens."""

    dataset: Reference
    """The windows to train and validate on."""

    tokenizer: Reference
    """Starting weights of the tokenizer stage; the frozen tokenizer of the predictor stage."""

    predictor: Reference | None = None
    """Starting weights of the predictor stage; None in the tokenizer stage."""

    config: StageConfig = field(default_factory=StageConfig)
    """How to train."""

    seed: int = 0
    """Of the order of windows, of dropout and of sampled tokens."""

    threads: int | None = None
    """CPU threads; None leaves the choice to torch."""

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise ValueError(f"stage: expected one of {', '.join(get_args(Stage))}, found {self.stage!r}")
        if (self.stage == "predictor") != (self.predictor is not None):
            raise ValueError(
                f"predictor: expected weights in the predictor stage and null in the tokenizer stage, "
                f"found {'null' if self.predictor is None else 'weights'} in the {self.stage} stage"
            )
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, found {self.seed}")
        if self.threads is not None:
            _at_least_one("threads", self.threads)

    @property
    def start(self) -> Reference:
        """The weights that this job trains on from."""
        return self.tokenizer if self.predictor is None else self.predictor

    def digest(self) -> str:
        """Of what determines the outcome; paths and threads may change between two runs of one job."""
        told = {
            "version": _VERSION,
            "stage": self.stage,
            "dataset": self.dataset.digest,
            "tokenizer": self.tokenizer.digest,
            "predictor": self.predictor and self.predictor.digest,
            "config": asdict(self.config),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


_Part = TypeVar("_Part", Job, Reference, StageConfig)


def write_job(directory: Path, job: Job) -> None:
    """Write job.json into the job directory, made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "job.json", {"version": _VERSION, **asdict(job)})


def read_job(directory: Path) -> Job:
    """Read job.json; ModelError where it is missing, of another version, or says something unknown."""
    path = directory / "job.json"
    told = read_json(path)
    if told.pop("version", None) != _VERSION:
        raise ModelError(f"expected a training job of version {_VERSION} in {path}; write it again")
    try:
        references = {name: _build(Reference, told.pop(name)) for name in ("dataset", "tokenizer")}
        predictor = told.pop("predictor", None)
        return _build(
            Job,
            told
            | references
            | {"predictor": predictor and _build(Reference, predictor)}
            | {"config": _build(StageConfig, told.pop("config", {}))},
        )
    except KeyError as error:
        raise ModelError(f"expected {error} in {path}, found none; write the job again") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"the training job in {path} is not valid: {error}") from error


def _build(kind: type[_Part], values: dict[str, Any]) -> _Part:
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{kind.__name__} knows no {', '.join(unknown)}; it knows {', '.join(sorted(known))}"
        )
    return kind(**values)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, found {value}")
