"""The training loop of both stages, with its sampler, schedule and optimizer.

Shapes: B windows of a forward pass, L bars of a window.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kronos_model.accounting import Accounting
from kronos_model.checkpoint import TrainState
from kronos_model.distributed import World
from kronos_model.errors import NonFiniteLoss
from kronos_model.job_files import JobKeeper
from kronos_model.jobs import StageConfig
from kronos_model.objective import Objective

__all__ = ["Interrupted", "StageConfig", "WindowSampler", "fit", "learning_rate", "make_optimizer"]

Indices = NDArray[np.int64]
_NAMED = 4  # windows that an error names


class Interrupted(Exception):  # noqa: N818, it is no failure
    """Asked to stop; the checkpoint holds everything that was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSampler:
    """Which windows a step sees: a pure function of how many were drawn before."""

    windows: int
    """Windows of the train split."""
    per_step: int
    """Windows of an optimizer step."""
    steps_per_epoch: int
    """Optimizer steps of an epoch."""
    seed: int
    """Of the permutations."""

    @classmethod
    def of(cls, windows: int, config: StageConfig, *, seed: int) -> Self:
        """A full pass per epoch, or steps_per_epoch of it."""
        per_step = config.batch_size * config.accumulation
        steps = min(math.ceil(windows / per_step), config.steps_per_epoch or windows)
        return cls(windows=windows, per_step=per_step, steps_per_epoch=steps, seed=seed)

    def draw(self, cursor: int) -> Indices:
        """The step's windows, after `cursor` windows of an endless row of permutations.

        A full epoch is one permutation, its last step what is left; a capped epoch runs on into the next.
        """
        lap, offset = divmod(cursor, self.windows)
        drawn = _permutation(self.seed, lap, self.windows)[offset : offset + self.per_step]
        short = self.per_step - len(drawn)
        if short == 0 or self.steps_per_epoch * self.per_step >= self.windows:
            return drawn
        return np.concatenate([drawn, _permutation(self.seed, lap + 1, self.windows)[:short]])


@lru_cache(maxsize=2)
def _permutation(seed: int, lap: int, windows: int) -> Indices:
    return np.random.default_rng([seed, lap]).permutation(windows)


def learning_rate(config: StageConfig, step: int, steps: int) -> float:
    """Of the step (from 0) among steps: linear warm-up to the peak, then cosine to zero (arXiv 1608.03983)."""
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def make_optimizer(model: nn.Module, config: StageConfig) -> torch.optim.AdamW:
    """Fused AdamW (arXiv 1711.05101) that decays matrices and embeddings, not biases and norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused or None
    )


def fit(
    state: TrainState,
    objective: Objective,
    sampler: WindowSampler,
    config: StageConfig,
    *,
    keeper: JobKeeper,
    bfloat16: bool = False,
    world: World | None = None,
    accounting: Accounting | None = None,
) -> None:
    """Train until the last epoch or until patience is spent; both stages, new or resumed.

    Raises Interrupted after a checkpoint when the keeper says stop, NonFiniteLoss before a step on it.
    """
    run = _Run(state, objective, config, keeper, world or World(), bfloat16)
    progress, steps = state.progress, config.epochs * sampler.steps_per_epoch
    try:
        while True:
            epoch, into = divmod(progress.step, sampler.steps_per_epoch)
            if into == 0 and progress.validated < progress.step:
                run.validate(epoch)
            if progress.step == steps or progress.stale >= (config.patience or math.inf):
                return
            started = time.perf_counter()
            indices = sampler.draw(progress.cursor)
            rate = learning_rate(config, progress.step, steps)
            losses = run.backward(indices)
            losses["grad_norm"] = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
            values = {name: float(value) for name, value in losses.items()}
            if not all(map(math.isfinite, values.values())):
                raise NonFiniteLoss(run.blame(indices, values))
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            progress.step, progress.cursor = progress.step + 1, progress.cursor + len(indices)
            seconds = time.perf_counter() - started
            bars = len(indices) * objective.dataset.length
            speed = {"lr": rate, "ms_per_step": seconds * 1000, "bars_per_s": bars / seconds}
            if accounting is not None:
                speed |= accounting.speed(len(indices), seconds)
            run.report("train", epoch + 1, values | speed, seconds=seconds)
            run.check()
            if progress.step % config.checkpoint_steps == 0 and into + 1 < sampler.steps_per_epoch:
                keeper.save(state)
    except Interrupted:
        keeper.save(state)
        raise


@dataclass(frozen=True, slots=True)
class _Run:
    """The steps of the loop that need everything it was given."""

    state: TrainState
    objective: Objective
    config: StageConfig
    keeper: JobKeeper
    world: World
    bfloat16: bool

    @property
    def device(self) -> torch.device:
        return self.state.generator.device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def backward(self, indices: Indices) -> dict[str, Tensor]:
        """Gradients of the mean loss over these windows and over all processes; returns the mean losses."""
        self.state.model.train()
        self.state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for mine, counted in self.batches(indices):
            share = counted / len(indices)
            with self.autocast():
                losses = self.objective.losses(self.state.model, mine, self.state.generator)
            (losses["loss"] * share).backward()  # type: ignore[no-untyped-call]
            _add(sums, {name: value.detach() * share for name, value in losses.items()})
        self.world.sum_gradients(self.state.model.parameters())
        return {name: self.world.sum(value) for name, value in sums.items()}

    def batches(self, indices: Indices) -> Iterator[tuple[Indices, int]]:
        """This process's part of each batch, and how many windows of it count.

        Where a batch has too few windows for all processes, the rest take one that does not count.
        """
        for first in range(0, len(indices), self.config.batch_size):
            batch = indices[first : first + self.config.batch_size]
            mine = batch[self.world.rank :: self.world.size]
            yield (mine, len(mine)) if len(mine) else (batch[:1], 0)

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Judge the weights on the validation windows, save, and keep them where they are the best so far."""
        started = time.perf_counter()
        available = self.objective.dataset.count("validation")
        wanted = min(self.config.validation_windows or available, available)
        self.state.model.eval()
        sums: dict[str, Tensor] = {}
        for mine, counted in self.batches(np.arange(wanted) * available // wanted):
            self.check()
            with self.autocast():
                tally = self.objective.tally(self.state.model, mine)
            _add(sums, tally if counted else {name: value * 0 for name, value in tally.items()})
        values = self.objective.summary({name: self.world.sum(value) for name, value in sums.items()}, wanted)
        if not math.isfinite(values["loss"]):
            raise NonFiniteLoss(
                f"the validation loss after step {self.state.progress.step} is {values['loss']}; "
                "look for absurd candles in the validation range, or start from other weights"
            )
        better = self.state.progress.judge(values["loss"])
        seconds = time.perf_counter() - started
        self.report("validation", epoch, values | {"seconds": seconds}, seconds=seconds)
        self.keeper.save(self.state)  # first, so that best/ never runs ahead of the checkpoint
        if better:
            self.keeper.keep(self.state)

    def report(self, phase: str, epoch: int, values: dict[str, float], *, seconds: float) -> None:
        progress = self.state.progress
        progress.seconds += seconds
        progress.lines += 1
        self.keeper.log(phase, {"step": progress.step, "epoch": epoch} | values)

    def check(self) -> None:
        """Raise Interrupted, in all processes alike, where one of them was asked to stop."""
        if self.world.any(self.keeper.stopping(), self.device):
            raise Interrupted

    @torch.no_grad()
    def blame(self, indices: Indices, values: dict[str, float]) -> str:
        """What a user needs to know of a step that cannot be taken: its losses and the windows at fault."""
        self.state.model.eval()
        alone = [
            self.objective.losses(self.state.model, indices[[i]], self.state.generator)
            for i in range(len(indices))
        ]
        guilty = indices[[not bool(losses["loss"].isfinite()) for losses in alone]]
        named = guilty if len(guilty) else indices
        losses = ", ".join(f"{name} {value:g}" for name, value in values.items())
        rest = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return (
            f"expected finite losses in step {self.state.progress.step + 1}, found {losses}; "
            f"no step was taken. {'At fault' if len(guilty) else 'In its batch'}: train windows "
            f"{'; '.join(self._name(int(index)) for index in named[:_NAMED])}{rest}. "
            "Lower the learning rate, or look at those candles"
        )

    def _name(self, index: int) -> str:
        window = self.objective.dataset.batch("train", [index])
        first, last = (datetime.fromtimestamp(window.open_time[0, at] / 1000, UTC) for at in (0, -1))
        return f"{index} ({window.series[0]}, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC)"


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
