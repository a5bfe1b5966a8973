"""One process, or the processes of torchrun: who am I, and sums over everyone.

Gradients are summed in one flat buffer after the last backward of a step, so that no forward can slip past
the reduction, and a checkpoint is the same whether one process or many wrote it.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from kronos_model.errors import LostProcess, ModelError

__all__ = ["World", "join_world", "local_processes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among its peers; alone by default."""

    rank: int = 0
    """0 writes the files."""
    size: int = 1
    """Processes that train together."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            with _together():
                dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so; all of them learn it."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def gather(self, values: Tensor, device: torch.device) -> list[Tensor]:
        """Every process's bytes (equal lengths), in order of rank, on the CPU."""
        if self.size == 1:
            return [values]
        parts = [torch.empty_like(values, device=device) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, values.to(device))
        return [part.cpu() for part in parts]

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # this process had no window in the step
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            with _together():
                dist.barrier()


def local_processes(asked: int | None, *, batch_size: int) -> int:
    """How many processes of this machine train together: those asked for, or one per CUDA device.

    Never more than the windows of a batch: the others would have nothing to do. Raises ModelError where there are
    too few devices.
    """
    devices = torch.cuda.device_count()
    if 0 < devices < (asked or 0):
        raise ModelError(
            f"expected at most {devices} training processes, one per CUDA device, found {asked}; "
            "lower model.processes or leave it empty"
        )
    return min(asked or max(1, devices), batch_size)


@contextmanager
def join_world(meeting: Path | None = None) -> Iterator[tuple[World, torch.device]]:
    """The world that torchrun describes in the environment, or this process alone, and its device.

    Its processes find each other in the file `meeting` where all are on this machine, else in torchrun's store.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if meeting is None:
        dist.init_process_group(backend)
    else:
        store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do at once; LostProcess where one of them is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise LostProcess(
            f"expected every process of this training to go on, found one gone ({reason}); the job is "
            "resumable, so run it again"
        ) from error
