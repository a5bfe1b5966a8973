"""Run or resume a training job: `python -m kronos_model.train JOBDIR`, alone or under torchrun.

Exit codes: 0 finished; 1 training failed, 2 the job cannot run as it is told and 3 another process of the same
training is gone, each with one sentence on stderr; 143 or 130 stopped by SIGTERM or SIGINT after a checkpoint.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kronos_model.accounting import Accounting, device_peak, training_flops
from kronos_model.adapters import add_adapters, freeze_bottom
from kronos_model.checkpoint import TrainState, start_streams
from kronos_model.config import PRESETS, check_bits
from kronos_model.distributed import World, join_world
from kronos_model.errors import DataError, LostProcess, ModelError, NonFiniteLoss
from kronos_model.files import model_digest, read_json
from kronos_model.fit import Interrupted, WindowSampler, fit, make_optimizer
from kronos_model.hub import lineage_of, read_metadata
from kronos_model.job_files import JobKeeper
from kronos_model.jobs import Job, Reference, read_job
from kronos_model.lock import locked
from kronos_model.objective import Objective, PredictorObjective, TokenizerObjective
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.tokens import StoredTokens, TokenSource, token_source
from kronos_model.windows import Split, WindowDataset

__all__ = ["LOST", "job_parser", "main", "run_job"]

LOST = 3
"""Exit code of a process whose training another one has left."""

_LET_SPEAK_S = 5.0  # the one that is gone may still be writing why, and torchrun reports who ends first
_ENCODE_LINES = 10  # lines of metrics per split: encoding a long history takes minutes

Model = KronosTokenizer | Kronos
Show = Callable[[str, Mapping[str, float]], object]


def run_job(
    directory: Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    show: Show = lambda phase, values: None,
    meeting: Path | None = None,
) -> dict[str, Any]:
    """Run the job to its end, from its last checkpoint where it has one; returns what result.json says.

    Raises ModelError where the job cannot run, Interrupted once `stopping` says so; `meeting` is as in join_world.
    """
    job = read_job(directory)
    if (directory / "result.json").exists():
        return read_json(directory / "result.json")
    with join_world(meeting) as (world, device):
        lock = locked(directory / ".lock", what=f"the training job {directory}")
        with lock if world.leads else nullcontext():
            return _run(directory, job, world=world, device=device, stopping=stopping, show=show)


def _run(
    directory: Path,
    job: Job,
    *,
    world: World,
    device: torch.device,
    stopping: Callable[[], bool],
    show: Show,
) -> dict[str, Any]:
    dataset = _open_dataset(directory, job)
    tokenizer, model = _load_models(directory, job)
    _choose_what_trains(model, job)
    state = _new_state(model.to(device), job, world=world, device=device)
    metadata = _metadata(directory, job, dataset, model)
    keeper = JobKeeper(
        directory=directory, job=job, world=world, metadata=metadata, stopping=stopping, show=show
    )
    resumed = keeper.resume(state)
    sampler = WindowSampler.of(dataset.count("train"), job.config, seed=job.seed)
    objective: Objective = TokenizerObjective(dataset=dataset, device=device)
    if isinstance(model, Kronos):
        encoder = _Encoder(
            dataset=dataset, tokenizer=tokenizer.to(device), device=device, keeper=keeper, silent=resumed
        )
        objective = PredictorObjective(
            dataset=dataset,
            device=device,
            train=encoder.tokens(
                "train", draws=job.config.epochs * sampler.steps_per_epoch * sampler.per_step
            ),
            validation=encoder.tokens("validation", draws=_validated(dataset, job)),
        )
        if not resumed:
            state.progress.lines = encoder.lines
    if job.config.compile:
        model.compile()
    bfloat16 = _bfloat16(job, device)
    length = dataset.length - (job.stage == "predictor")  # the last bar is only a target
    fit(
        state,
        objective,
        sampler,
        job.config,
        keeper=keeper,
        bfloat16=bfloat16,
        world=world,
        accounting=Accounting(
            tokens_per_window=length,
            flops_per_token=training_flops(model.config, length),
            peak=world.size * device_peak(device, bfloat16=bfloat16),
        ),
    )
    steps = job.config.epochs * sampler.steps_per_epoch
    return keeper.finish(state, steps=steps, steps_per_epoch=sampler.steps_per_epoch)


def _open_dataset(directory: Path, job: Job) -> WindowDataset:
    path = directory / job.dataset.path
    dataset = WindowDataset.open(path)
    if dataset.manifest["digest"] != job.dataset.digest:
        raise DataError(
            f"expected the dataset {job.dataset.digest} at {path}, found {dataset.manifest['digest']}; "
            "build that dataset again or write a new job"
        )
    for split in ("train", "validation"):
        if dataset.count(split) == 0:
            raise DataError(f"expected {split} windows in {path}, found none; ingest more history")
    return dataset


def _load_models(directory: Path, job: Job) -> tuple[KronosTokenizer, Model]:
    """The tokenizer and the model to train, which are one in the tokenizer stage."""
    tokenizer = KronosTokenizer.from_pretrained(_checked(directory, job.tokenizer, "tokenizer"))
    if job.predictor is None:
        return tokenizer, tokenizer
    predictor = Kronos.from_pretrained(_checked(directory, job.predictor, "predictor"))
    check_bits(tokenizer.config, predictor.config, makes=job.tokenizer.path, reads=job.predictor.path)
    return tokenizer, predictor


def _choose_what_trains(model: Model, job: Job) -> None:
    config = job.config
    try:
        freeze_bottom(model, config.frozen_layers)
    except ValueError as error:
        raise ModelError(f"the job cannot run: {error}") from error
    add_adapters(
        model, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets, seed=job.seed
    )
    if isinstance(model, Kronos):
        model.recompute = config.recompute


def _checked(directory: Path, reference: Reference, part: str) -> Path:
    path = (directory / reference.path).absolute()
    if (found := model_digest(path)) != reference.digest:
        raise ModelError(
            f"expected the {part} {reference.digest} at {path}, found {found}; "
            "put it back or write a new job for what is there"
        )
    return path


def _new_state(model: Model, job: Job, *, world: World, device: torch.device) -> TrainState:
    """The state before the first step; each process draws its own random numbers."""
    generator = torch.Generator(device)
    start_streams(generator, [job.seed, world.rank])
    return TrainState(model=model, optimizer=make_optimizer(model, job.config), generator=generator)


def _metadata(directory: Path, job: Job, dataset: WindowDataset, model: Model) -> dict[str, Any]:
    """kronos_nightly.json of the trained weights, but for what only training can tell."""
    before = read_metadata(directory / job.start.path) or {}
    known = [p.max_context for p in PRESETS.values() if model.config in (p.tokenizer, p.predictor)]
    return {
        "part": job.stage,
        "interval": dataset.manifest["interval"],
        "lookback": dataset.lookback,
        "horizon": dataset.horizon,
        "max_context": before.get("max_context") or (known or [dataset.length])[0],
        "s2_decode": before.get("s2_decode") or "trained",
        "normaliser": dataset.normaliser.to_dict(),
        "prices_only": bool(dataset.manifest["config"].get("prices_only", False)),
        "tokenizer_digest": job.tokenizer.digest,
        "training": {
            "dataset": job.dataset.digest,
            "series": list(dataset.series),
            "until_ms": _trained_until(before, dataset),
            "start": job.start.digest,
            "lineage": lineage_of(directory / job.start.path),
            "job": job.digest(),
            "seed": job.seed,
            "config": asdict(job.config),
        },
    }


def _trained_until(before: Mapping[str, Any], dataset: WindowDataset) -> int:
    """Open time of the newest candle behind the weights, their earlier training included."""
    return max(before.get("training", {}).get("until_ms") or 0, dataset.last_ms("train") or 0)


def _validated(dataset: WindowDataset, job: Job) -> int:
    """Validation windows that the job looks at, over all its validations."""
    available = dataset.count("validation")
    return min(job.config.validation_windows or available, available) * (job.config.epochs + 1)


def _bfloat16(job: Job, device: torch.device) -> bool:
    if job.config.precision == "auto":
        return job.stage == "predictor" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return job.config.precision == "bfloat16"


@dataclass(kw_only=True, slots=True)
class _Encoder:
    """Makes token sources for the job and tells the metrics how far it is.

    A new job gets the same lines whether the tokens were stored before or not; a resumed one has them.
    """

    dataset: WindowDataset
    tokenizer: KronosTokenizer
    device: torch.device
    keeper: JobKeeper
    silent: bool
    lines: int = 0
    told: dict[Split, int] = field(default_factory=dict)

    def tokens(self, split: Split, *, draws: int) -> TokenSource:
        """Tokens of a split from which so many windows will be drawn."""
        total, job = self.dataset.count(split), self.keeper.job
        source = token_source(
            self.dataset,
            self.tokenizer,
            split,
            folder=self.keeper.directory / job.dataset.path,
            digest=job.tokenizer.digest,
            draws=draws,
            budget_mb=job.config.token_cache_mb,
            device=self.device,
            progress=lambda done, total: self._tell(split, done, total),
        )
        if isinstance(source, StoredTokens):
            self._tell(split, total, total)
        return source

    def _tell(self, split: Split, done: int, total: int) -> None:
        if self.keeper.stopping():
            raise Interrupted
        while not self.silent and (part := self.told.get(split, 0)) < done * _ENCODE_LINES // total:
            self.told[split] = part + 1
            self.lines += 1
            values = {f"{split}_windows": -(-total * (part + 1) // _ENCODE_LINES), f"{split}_total": total}
            self.keeper.log("encode", {"step": 0, "epoch": 0} | values)


def job_parser(prog: str) -> argparse.ArgumentParser:
    """What the command lines of one and of several processes share."""
    parser = argparse.ArgumentParser(prog=prog, description="Run or resume a job.")
    parser.add_argument("job", type=Path, metavar="JOBDIR", help="directory that holds job.json")
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="stop, resumably, once this process is gone"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = job_parser("python -m kronos_model.train")
    parser.add_argument("--progress", action="store_true", help="show one line of progress on stderr")
    parser.add_argument(
        "--meeting",
        type=Path,
        metavar="FILE",
        help="where torchrun's processes on one machine find each other",
    )
    options = parser.parse_args(arguments)
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        if (options.job / "result.json").exists():
            _say(f"{options.job} is finished; its result is in result.json")
            return 0
        _prepare_torch(read_job(options.job))
        run_job(
            options.job,
            stopping=lambda: bool(received) or _orphaned(options.parent),
            show=_progress_line if options.progress else lambda phase, values: None,
            meeting=options.meeting,
        )
    except Interrupted:
        return 128 + (received or [signal.SIGTERM])[0]
    except NonFiniteLoss as error:
        return _say(str(error), code=1)
    except LostProcess as error:
        ends = time.monotonic() + _LET_SPEAK_S
        while time.monotonic() < ends and not received and not _orphaned(options.parent):
            time.sleep(0.05)
        return _say(str(error), code=LOST)
    except ModelError as error:
        return _say(str(error), code=2)
    except torch.OutOfMemoryError:
        return _say("the device ran out of memory; write a job with a lower batch_size", code=1)
    return 0


def _orphaned(parent: int | None) -> bool:
    """Whether the process that wanted this training has died, however suddenly; nobody would read on."""
    return parent is not None and os.getppid() != parent


def _prepare_torch(job: Job) -> None:
    """Settings of the whole process: threads, and the same numbers every time on a CPU."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow


def _say(sentence: str, *, code: int = 0) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


def _progress_line(phase: str, values: Mapping[str, float]) -> None:
    told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    sys.stderr.write(f"\r\x1b[K{phase}  {told}")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
