"""A training stage as a child process: start or resume it, tail its metrics, pass cancellation on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from kronos_model.config import PRESETS
from kronos_model.distributed import local_processes
from kronos_model.errors import ModelError
from kronos_model.fit import WindowSampler
from kronos_model.hub import lineage_of, resolve_pair, scratch_pair
from kronos_model.jobs import Job, Reference, Stage, StageConfig, write_job
from storage.layout import Home
from tasks.code_digest import code_digest
from tasks.policies import IDEMPOTENT
from tasks.progress import progress_bar
from tasks.refs import BuiltDataset, PairRef, RunRef, TrainedRef
from tasks.tracking.store import tolerant
from tasks.tracking.tail import MetricTail

__all__ = ["base_model", "train"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_TELL_S = 5.0  # twenty milliseconds a call, to Prefect and to MLflow: 4 % of a night when told every second
_STOP_S = 6.0  # a cancelled run is over within ten seconds; a longer step is lost, its checkpoint is not


@task(name="base model", task_run_name="base model", **IDEMPOTENT)
def base_model(home: Home, preset: str, weights: str, seed: int) -> PairRef:
    """The weights a night starts from: the Hub's at the pinned revision, a folder's, or seeded random ones."""
    if weights == "scratch":
        pair = scratch_pair(PRESETS[preset], home.models / "scratch" / f"{preset}-{seed}", seed)
    else:
        pair = resolve_pair(PRESETS[preset], weights)
    return PairRef(
        tokenizer=str(pair.tokenizer),
        tokenizer_digest=pair.tokenizer_digest,
        predictor=str(pair.predictor),
        predictor_digest=pair.predictor_digest,
        origin=pair.origin,
        lineage=lineage_of(pair.predictor),
    )


@task(name="train", task_run_name="train {stage}", **IDEMPOTENT)
def train(
    home: Home,
    stage: Stage,
    *,
    dataset: BuiltDataset,
    start: PairRef,
    config: StageConfig,
    seed: int,
    threads: int | None,
    processes: int | None,
    run: RunRef,
) -> TrainedRef:
    """Run, resume or recognise the job of these inputs; its id is a digest of them and of the code.

    How many processes share its batches (None: one per CUDA device) is no part of that: windows and their order stay.
    """
    job = _job(stage, dataset, start, config, seed, threads)
    folder = home.jobs / f"{stage}-{_identity(job)}"
    finished_before = (folder / "result.json").exists()
    if not finished_before:
        write_job(folder, job)
    sampler = WindowSampler.of(dataset.windows["train"], config, seed=seed)
    steps = config.epochs * sampler.steps_per_epoch
    command = _command(folder, local_processes(processes, batch_size=config.batch_size))
    _run_child(command, folder, stage, run, steps=steps, wait_only=finished_before)
    return _trained_ref(stage, folder, trained=not finished_before)


def _identity(job: Job) -> str:
    """What the job is told, and the code that would do it: an update does not take up what another began."""
    return hashlib.sha256(f"{job.digest()}\n{code_digest()}".encode()).hexdigest()[:16]


def _job(
    stage: Stage, dataset: BuiltDataset, start: PairRef, config: StageConfig, seed: int, threads: int | None
) -> Job:
    return Job(
        stage=stage,
        dataset=Reference(path=str(dataset.path), digest=dataset.digest),
        tokenizer=Reference(path=start.tokenizer, digest=start.tokenizer_digest),
        predictor=Reference(path=start.predictor, digest=start.predictor_digest)
        if stage == "predictor"
        else None,
        config=config,
        seed=seed,
        threads=threads,
    )


def _command(folder: Path, processes: int) -> list[str]:
    """What trains the job; with several processes it is what launches them."""
    train = [sys.executable, "-m", "kronos_model.train", str(folder)]
    launch = [sys.executable, "-m", "kronos_model.launch", str(folder), "--processes", str(processes)]
    return [*(train if processes == 1 else launch), "--parent", str(os.getpid())]


def _run_child(
    command: list[str], folder: Path, stage: str, run: RunRef, *, steps: int, wait_only: bool
) -> None:
    """Train in a child and mirror metrics.jsonl. Raises ModelError with the child's own sentence when it fails."""
    tail = MetricTail(run, folder / "metrics.jsonl", stage)
    if not wait_only:
        with _child(command, folder / "stderr.log") as child, progress_bar(f"train {stage}") as progress:
            artifact: Any = create_progress_artifact(
                progress=0.0, key=f"train-{stage}", description=f"Training the {stage}"
            )
            done, total, told = 0, steps, -_TELL_S
            while (code := _wait(child)) is None:
                if (newest := tail.poll()) is not None:
                    done, total = _position(newest, steps)
                    progress(done, total)
                if time.monotonic() - told >= _TELL_S:
                    told = time.monotonic()
                    with tolerant(f"{stage} metrics"):
                        tail.send()
                    update_progress_artifact(artifact, progress=100.0 * done / total)
            if code != 0:
                raise ModelError(_complaint(folder, stage, code))
            update_progress_artifact(artifact, progress=100.0)
    tail.poll()
    tail.send()


@contextmanager
def _child(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The training process; whatever ends the block also ends the child, which leaves a resumable job."""
    with log.open("wb") as stderr:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            yield child
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and the processes that it has launched, which are in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        launched = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        for process in launched:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(launched, timeout=_STOP_S)
    child.wait()


def _position(record: dict[str, Any], steps: int) -> tuple[int, int]:
    """How far a job is: windows while it encodes a split, optimizer steps afterwards."""
    if record["phase"] == "encode":
        split = "train" if "train_windows" in record else "validation"
        return int(record[f"{split}_windows"]), int(record[f"{split}_total"])
    return int(record["step"]), steps


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _complaint(folder: Path, stage: str, code: int) -> str:
    lines = [
        line for line in (folder / "stderr.log").read_text(errors="replace").splitlines() if line.strip()
    ]
    if code == 2 and lines:
        return lines[-1]
    last = lines[-1] if lines else "it wrote no message"
    return (
        f"Training the {stage} ended with exit code {code} ({last}); the job in {folder} is resumable, "
        f"so run the same command again, and read {folder / 'stderr.log'} if it ends the same way."
    )


def _trained_ref(stage: Stage, folder: Path, *, trained: bool) -> TrainedRef:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return TrainedRef(
        stage=stage,
        job=str(folder),
        best=str(folder / "best"),
        digest=result["digest"],
        trained=trained,
        steps=result["steps"],
        epochs=result["epochs"],
        initial_loss=result["initial_validation_loss"],
        best_loss=result["best_validation_loss"],
        best_step=result["best_step"],
        stopped=result["stopped"],
    )
