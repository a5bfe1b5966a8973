"""The whole state of a training run, saved and restored without pickle.

checkpoint/tensors.safetensors holds parameters, the optimizer's moments and the random generators' states as
bytes; checkpoint/progress.json holds everything else. The directory is replaced as one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kronos_model.distributed import World
from kronos_model.errors import ModelError
from kronos_model.files import read_json, replace_directory, settle_directory, write_json

__all__ = ["Progress", "TrainState", "restore_checkpoint", "save_checkpoint", "start_streams"]

_VERSION = 2


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run has come; all of it plain numbers."""

    step: int = 0
    """Optimizer steps taken."""
    cursor: int = 0
    """Windows drawn by the sampler."""
    validated: int = -1
    """Step of the last validation; -1 before the first."""
    initial_loss: float | None = None
    """Validation loss of the starting weights."""
    best_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int = 0
    """Step of the lowest validation loss."""
    stale: int = 0
    """Epochs since the lowest validation loss."""
    lines: int = 0
    """Lines of metrics.jsonl that belong to this state."""
    seconds: float = 0.0
    """Time spent training and validating, over all runs of the job."""

    def judge(self, loss: float) -> bool:
        """Take note of a validation at this step; True where its loss is the lowest so far."""
        self.validated = self.step
        if self.initial_loss is None:
            self.initial_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = loss, self.step, 0
            return True
        self.stale += 1
        return False


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Everything that decides what the next step does."""

    model: nn.Module
    """The weights in training."""
    optimizer: torch.optim.Optimizer
    """With its moments; the schedule is a function of the step."""
    generator: torch.Generator
    """Draws what the objective samples (coarse tokens), on the device of the model. Dropout draws from
    torch's default generators, which are saved as well."""
    progress: Progress = field(default_factory=Progress)
    """Counters, the best so far and patience."""


def save_checkpoint(directory: Path, state: TrainState, *, job: str, world: World | None = None) -> None:
    """Replace the checkpoint by this state; every process must call it, the first one writes."""
    world = world or World()
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    moments = state.optimizer.state_dict()["state"]
    tensors |= {f"optimizer.{key}.{name}": v for key, values in moments.items() for name, v in values.items()}
    device = state.generator.device
    for name, value in _random_states(state).items():
        parts = world.gather(value, device)
        tensors |= {f"random.{rank}.{name}": part for rank, part in enumerate(parts)}
    if not world.leads:
        return
    told = {"version": _VERSION, "job": job, "processes": world.size, "progress": asdict(state.progress)}
    with replace_directory(directory) as temporary:
        # safetensors refuses tensors that share memory or are not contiguous
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary / "tensors.safetensors",
        )
        write_json(temporary / "progress.json", told)


def restore_checkpoint(directory: Path, state: TrainState, *, job: str, world: World | None = None) -> bool:
    """Bring the state to where the checkpoint left it; False where there is no checkpoint yet.

    Another number of processes sees the same windows in the same order, but draws other random numbers.
    """
    world = world or World()
    if world.leads:
        settle_directory(directory)
    world.wait()
    if not directory.exists():
        return False
    told = read_json(directory / "progress.json")
    expected = {"version": _VERSION, "job": job}
    found = {name: told.get(name) for name in expected}
    if found != expected:
        raise ModelError(
            f"expected the checkpoint in {directory} to be of {expected}, found {found}; "
            "run the job as it was started, or write a new job directory"
        )
    try:
        tensors = load_file(directory / "tensors.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the checkpoint in {directory} cannot be read ({error}); "
            "delete that folder to start the job again"
        ) from error
    state.model.load_state_dict(_under("model.", tensors))  # copies into the parameters' own memory
    _restore_moments(state.optimizer, _under("optimizer.", tensors))
    state.progress = Progress(**told["progress"])
    if told["processes"] == world.size:
        _restore_random(state, _under(f"random.{world.rank}.", tensors))
    else:
        # streams that no process has drawn from: the old ones belonged to other processes
        start_streams(
            state.generator, [state.generator.initial_seed(), state.progress.step, world.size, world.rank]
        )
    return True


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in moments.items():
        key, moment = name.split(".", 1)
        # cloned: kernels may round differently on the file's memory, which is not aligned as torch's own
        state.setdefault(int(key), {})[moment] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def start_streams(generator: torch.Generator, root: Sequence[int]) -> None:
    """Seed dropout's default generators and this one, which samples, from the root."""
    dropout, sampling = np.random.SeedSequence(root).generate_state(2)
    torch.manual_seed(int(dropout))
    generator.manual_seed(int(sampling))


def _random_states(state: TrainState) -> dict[str, Tensor]:
    """The generators' states as bytes: sampling, and the default ones that dropout draws from."""
    states = {"sampling": state.generator.get_state(), "cpu": torch.get_rng_state()}
    if state.generator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(state.generator.device)
    return states


def _restore_random(state: TrainState, states: dict[str, Tensor]) -> None:
    expected = sorted(_random_states(state))
    if sorted(states) != expected:
        raise ModelError(
            f"expected the generators {', '.join(expected)} in the checkpoint, "
            f"found {', '.join(sorted(states))}; resume on the kind of device that the job was started on"
        )
    state.generator.set_state(states["sampling"].clone())
    torch.set_rng_state(states["cpu"].clone())
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), state.generator.device)
