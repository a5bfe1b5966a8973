"""What a training job writes into its directory: metrics.jsonl, checkpoint/, best/ and result.json.

The first process writes; the others keep the same counts.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kronos_model.adapters import merged
from kronos_model.checkpoint import TrainState, restore_checkpoint, save_checkpoint
from kronos_model.distributed import World
from kronos_model.files import model_digest, replace_directory, replace_file, write_json
from kronos_model.hub import write_metadata
from kronos_model.jobs import Job
from kronos_model.pretrained import Pretrained

__all__ = ["JobKeeper"]

Show = Callable[[str, Mapping[str, float]], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKeeper:
    """A job directory, open for writing; nothing in it but `stopping` decides what the run does next."""

    directory: Path
    job: Job
    world: World
    metadata: Mapping[str, Any]
    """kronos_nightly.json of best/, but for what only training can tell."""
    stopping: Callable[[], bool]
    """Whether someone has asked the run to end."""
    show: Show

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    def resume(self, state: TrainState) -> bool:
        """Bring the state and the files to the last checkpoint; False where the job is new."""
        if self.world.leads:
            for leftover in self.directory.glob(".*.tmp"):  # of a killed process
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        resumed = restore_checkpoint(
            self.directory / "checkpoint", state, job=self.job.digest(), world=self.world
        )
        if self.world.leads:
            self._cut(state.progress.lines)
        if resumed and state.progress.best_step == state.progress.step == state.progress.validated:
            self.keep(state)  # the process may have died between this checkpoint and best/
        return resumed

    def log(self, phase: str, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.world.leads:
            return
        told = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, **told}) + "\n")
        self.show(phase, values)

    def save(self, state: TrainState) -> None:
        """Replace checkpoint/, which promises that the metrics up to it are on disk."""
        if self.world.leads:
            with self.metrics.open("a") as file:
                os.fsync(file.fileno())
        save_checkpoint(self.directory / "checkpoint", state, job=self.job.digest(), world=self.world)

    def keep(self, state: TrainState) -> None:
        """Replace best/ by the state's weights, whose checkpoint has just been saved."""
        if not self.world.leads:
            return
        progress, model = state.progress, state.model
        assert isinstance(model, Pretrained)
        training = self.metadata["training"] | {
            "step": progress.step,
            "validation_loss": progress.best_loss,
            "initial_validation_loss": progress.initial_loss,
        }
        with replace_directory(self.directory / "best") as folder:
            merged(model).save_pretrained(folder)
            told = {**self.metadata, "training": training}
            if self.job.stage == "tokenizer":
                told["tokenizer_digest"] = model_digest(folder)
            write_metadata(folder, told)

    def finish(self, state: TrainState, *, steps: int, steps_per_epoch: int) -> dict[str, Any]:
        """Write result.json, by which the job is finished."""
        progress = state.progress
        self.world.wait()  # the first process may still be writing best/
        result = {
            "stage": self.job.stage,
            "best_step": progress.best_step,
            "best_validation_loss": progress.best_loss,
            "initial_validation_loss": progress.initial_loss,
            "steps": progress.step,
            "epochs": progress.step // steps_per_epoch,
            "stopped": "finished" if progress.step == steps else "patience",
            "digest": model_digest(self.directory / "best"),
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "seconds": progress.seconds,
        }
        if self.world.leads:
            write_json(self.directory / "result.json", result)
        return result

    def _cut(self, lines: int) -> None:
        """Drop what metrics.jsonl says beyond the checkpoint, and a line that was never finished."""
        if not self.metrics.exists():
            return
        found = self.metrics.read_bytes()
        kept = b"".join(line for line in found.splitlines(keepends=True)[:lines] if line.endswith(b"\n"))
        if kept != found:
            with replace_file(self.metrics) as temporary:
                temporary.write_bytes(kept)
