"""What a training job is told: job.json, its settings and its references by path and digest.

A job directory holds job.json, metrics.jsonl, checkpoint/, best/ and, once finished, result.json.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from kronos_model.errors import ModelError
from kronos_model.files import read_json, write_json
from kronos_model.settings import Bounds, Count, Counted, NotNegative, Positive, Seed, settings

__all__ = ["Job", "Reference", "Stage", "StageConfig", "read_job", "write_job"]

Stage = Literal["tokenizer", "predictor"]
Precision = Literal["auto", "float32", "bfloat16"]
Targets = Literal["attention", "mlp", "all"]

_VERSION = 1


@settings
class StageConfig:
    """How one stage trains."""

    epochs: Count = 5
    """Passes over the training windows; shorter ones where steps_per_epoch caps them."""
    steps_per_epoch: Count | None = None
    """At most this many optimizer steps per epoch; a capped epoch continues where the last one left off, so
    that all windows get seen. None: one full pass."""
    batch_size: Count = 32
    """Windows per forward pass, over all processes."""
    accumulation: Count = 1
    """Forward passes per optimizer step; an optimizer step sees batch_size x accumulation windows."""
    learning_rate: Positive = 2e-6
    """Peak of the schedule: linear warm-up, then cosine to zero."""
    weight_decay: NotNegative = 0.1
    """AdamW's decay, on matrices and embeddings only."""
    beta1: Annotated[float, Bounds(ge=0, lt=1)] = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: Annotated[float, Bounds(ge=0, lt=1)] = 0.95
    """AdamW's decay of the gradient's square."""
    warmup_share: Annotated[float, Bounds(ge=0, lt=1)] = 0.03
    """Share of all steps spent in warm-up."""
    clip_norm: Positive = 3.0
    """Gradients are scaled down to this norm."""
    patience: Count | None = 5
    """Epochs without a better validation loss after which training stops. None: never."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast for the predictor on CUDA devices that support it, else float32 (rounding flips
    the tokenizer's bits). bfloat16 also pays on CPUs with AVX512-BF16 or AMX."""
    compile: bool = False
    """Let torch.compile fuse the forward pass: minutes of compiling for faster steps, on GPUs above all."""
    recompute: bool = False
    """Activation checkpointing: compute each predictor block again in the backward pass instead of remembering
    what is inside it; less memory, about a third more time."""
    frozen_layers: Counted = 0
    """Leave this many bottom blocks, and the embeddings below them, as they are."""
    lora_rank: Counted = 0
    """Train low-rank adapters of this rank instead of the weights; they are merged into best/. 0: all weights."""
    lora_alpha: Positive = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_targets: Targets = "all"
    """Projections that get adapters: of attention, of the feed-forward (mlp), or all of both."""
    validation_windows: Count | None = None
    """At most this many validation windows, evenly spaced. None: all."""
    checkpoint_steps: Count = 200
    """Optimizer steps between checkpoints; every epoch also ends with one."""
    token_cache_mb: Annotated[int, Bounds(ge=0, unit="MiB")] = 8192
    """Largest size (MiB) of a split's tokens on disk; above it windows are encoded as they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A folder and the digest it is expected to have."""

    path: str
    """Absolute, or relative to the job directory."""
    digest: str
    """A dataset's digest from its manifest, a model's from kronos_model.files.model_digest."""


@settings
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
    seed: Seed = 0
    """Of the order of windows, of dropout and of sampled tokens."""
    threads: Count | None = None
    """CPU threads; None leaves the choice to torch."""

    def __post_init__(self) -> None:
        if (self.stage == "predictor") != (self.predictor is not None):
            raise ValueError(
                f"predictor: expected weights in the predictor stage and null in the tokenizer stage, "
                f"found {'null' if self.predictor is None else 'weights'} in the {self.stage} stage"
            )

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
_REFERENCES = ("dataset", "tokenizer", "predictor")


def write_job(directory: Path, job: Job) -> None:
    """Write job.json into the job directory, made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "job.json", {"version": _VERSION, **asdict(job)})


def read_job(directory: Path) -> Job:
    """Read job.json; ModelError where it is missing, of another version, or says something unknown."""
    path = directory / "job.json"
    told = {"predictor": None, "config": {}} | read_json(path)
    if told.pop("version", None) != _VERSION:
        raise ModelError(f"expected a training job of version {_VERSION} in {path}; write it again")
    try:
        parts = {name: told[name] and _build(Reference, told[name]) for name in _REFERENCES}
        return _build(Job, told | parts | {"config": _build(StageConfig, told["config"])})
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
