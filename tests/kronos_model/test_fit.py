"""The loop on a toy objective with known answers: order of windows, schedule, steps, stopping."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kronos_model.checkpoint import TrainState
from kronos_model.errors import NonFiniteLoss
from kronos_model.fit import Interrupted, StageConfig, WindowSampler, fit, learning_rate, make_optimizer


class ToyDataset:
    """One number in and one number out per window."""

    length = 10

    def __init__(self, train: int, validation: int = 5) -> None:
        rng = np.random.default_rng(0)
        self.x = {"train": rng.normal(size=train), "validation": rng.normal(size=validation)}

    def count(self, split: str) -> int:
        return len(self.x[split])

    def batch(self, split: str, indices: Any) -> Any:
        times = np.asarray(indices)[:, None] * 3_600_000 + np.arange(self.length) * 3_600_000
        return SimpleNamespace(series=["um:TOY"] * len(times), open_time=times)


@dataclass
class ToyObjective:
    """Least squares with a model of one weight and one bias; NaN on poisoned windows."""

    dataset: ToyDataset
    poisoned: frozenset[int] = frozenset()
    seen: list[int] = field(default_factory=list)
    worse: float = 0.0

    def losses(self, model: nn.Module, indices: Any, generator: torch.Generator) -> dict[str, Tensor]:
        self.seen += np.asarray(indices).tolist()
        x = torch.tensor(self.dataset.x["train"][indices], dtype=torch.float32)[:, None]
        noise = torch.randn(len(x), 1, generator=generator) * 0.01 + torch.randn(len(x), 1) * 0.01
        error = (model(x) - 2 * x - 1 - noise).square()
        error = torch.where(torch.tensor([[int(i) in self.poisoned] for i in indices]), float("nan"), error)
        return {"loss": error.mean()}

    def tally(self, model: nn.Module, indices: Any) -> dict[str, Tensor]:
        x = torch.tensor(self.dataset.x["validation"][indices], dtype=torch.float32)[:, None]
        return {"error": (model(x) - 2 * x - 1).square().double().sum()}

    def summary(self, sums: Mapping[str, Tensor], windows: int) -> dict[str, float]:
        self.worse *= 2
        return {"loss": float(sums["error"]) / windows + self.worse}


@dataclass
class ToyKeeper:
    """Remembers what it was told; says stop once so many steps are done."""

    stop_at: int = -1
    told: list[dict[str, Any]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    written: list[tuple[str, int]] = field(default_factory=list)

    def log(self, phase: str, values: Mapping[str, float]) -> None:
        self.told.append({"phase": phase, **values})

    def save(self, state: TrainState) -> None:
        self.saved.append(state.progress.step)
        self.written.append(("checkpoint", state.progress.step))

    def keep(self, state: TrainState) -> None:
        self.kept.append(state.progress.step)
        self.written.append(("best", state.progress.step))

    def stopping(self) -> bool:
        return sum(line["phase"] == "train" for line in self.told) == self.stop_at

    def lines(self, phase: str) -> list[dict[str, Any]]:
        return [line for line in self.told if line["phase"] == phase]


def make_state(config: StageConfig) -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    return TrainState(
        model=model, optimizer=make_optimizer(model, config), generator=torch.Generator().manual_seed(0)
    )


def run(config: StageConfig, *, train: int = 20, keeper: ToyKeeper | None = None, **toy: Any) -> Any:
    state, keeper = make_state(config), keeper or ToyKeeper()
    objective = ToyObjective(ToyDataset(train), **toy)
    sampler = WindowSampler.of(train, config, seed=3)
    fit(state, objective, sampler, config, keeper=keeper)  # type: ignore[arg-type]
    return SimpleNamespace(state=state, keeper=keeper, objective=objective, sampler=sampler)


def make_config(**settings: Any) -> StageConfig:
    return StageConfig(**{"epochs": 2, "batch_size": 4, "learning_rate": 0.05} | settings)


def draw_all(sampler: WindowSampler, epochs: int) -> list[list[int]]:
    """What each epoch draws."""
    cursor, epochs_drawn = 0, []
    for _ in range(epochs):
        drawn: list[int] = []
        for _ in range(sampler.steps_per_epoch):
            indices = sampler.draw(cursor)
            cursor += len(indices)
            drawn += indices.tolist()
        epochs_drawn.append(drawn)
    return epochs_drawn


@pytest.mark.parametrize(("windows", "batch"), [(20, 4), (21, 4), (3, 8), (1, 1)])
def test_an_epoch_draws_every_window_exactly_once(windows: int, batch: int) -> None:
    epochs = draw_all(WindowSampler.of(windows, make_config(batch_size=batch), seed=1), 3)
    assert all(sorted(drawn) == list(range(windows)) for drawn in epochs)
    assert windows < 20 or epochs[0] != epochs[1]


def test_a_cap_beyond_a_full_pass_changes_nothing() -> None:
    full = WindowSampler.of(21, make_config(), seed=1)
    assert WindowSampler.of(21, make_config(steps_per_epoch=100), seed=1) == full
    assert WindowSampler.of(21, make_config(steps_per_epoch=6), seed=1) == full


def test_capped_epochs_continue_through_the_permutation_until_all_windows_are_seen() -> None:
    sampler = WindowSampler.of(23, make_config(steps_per_epoch=2, accumulation=2), seed=1)
    epochs = draw_all(sampler, 23)
    assert {len(drawn) for drawn in epochs} == {16}
    row = [index for drawn in epochs for index in drawn]  # 16 permutations of 23 windows
    laps = [row[first : first + 23] for first in range(0, len(row), 23)]
    assert all(sorted(lap) == list(range(23)) for lap in laps)
    assert laps[0] != laps[1]


def test_what_is_drawn_depends_on_seed_and_cursor_alone() -> None:
    config = make_config(steps_per_epoch=3)
    first, again, other = (WindowSampler.of(50, config, seed=seed) for seed in (1, 1, 2))
    assert first.draw(48).tolist() == again.draw(48).tolist()
    assert first.draw(0).tolist() != other.draw(0).tolist()


def test_the_schedule_warms_up_linearly_and_then_follows_torchs_cosine() -> None:
    config = make_config(learning_rate=0.5, warmup_share=0.2)
    rates = [learning_rate(config, step, 50) for step in range(50)]
    np.testing.assert_allclose(rates[:10], 0.5 * np.arange(1, 11) / 10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for rate in rates[10:]:
        assert rate == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_matrices_decay_and_biases_do_not() -> None:
    decayed, spared = make_optimizer(nn.Linear(3, 2), make_config(weight_decay=0.3)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 3)]
    assert decayed["weight_decay"] == 0.3
    assert [tuple(p.shape) for p in spared["params"]] == [(2,)]
    assert spared["weight_decay"] == 0.0


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_equals_a_plain_loop(accumulation: int) -> None:
    config = make_config(accumulation=accumulation, clip_norm=0.5)
    trained = run(config, train=22)
    state, toy = make_state(config), ToyObjective(ToyDataset(22))
    optimizer = torch.optim.AdamW(
        [{"params": [state.model.weight]}, {"params": [state.model.bias], "weight_decay": 0.0}],
        weight_decay=0.1,
        betas=(0.9, 0.95),
    )
    cursor, steps = 0, 2 * trained.sampler.steps_per_epoch
    for step in range(steps):
        indices = trained.sampler.draw(cursor)
        cursor += len(indices)
        optimizer.zero_grad()
        for first in range(0, len(indices), 4):
            batch = indices[first : first + 4]
            loss = toy.losses(state.model, batch, state.generator)["loss"]
            (loss * len(batch) / len(indices)).backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        optimizer.step()
    assert toy.seen == trained.objective.seen
    torch.testing.assert_close(
        dict(trained.state.model.named_parameters()), dict(state.model.named_parameters())
    )


def test_every_step_says_its_loss_rate_norm_and_speed() -> None:
    done = run(make_config(epochs=1))
    expected = {"phase", "step", "epoch", "loss", "lr", "grad_norm", "ms_per_step", "bars_per_s"}
    assert [set(line) for line in done.keeper.lines("train")] == [expected] * 5
    assert [(line["step"], line["epoch"]) for line in done.keeper.lines("train")] == [
        (n, 1) for n in range(1, 6)
    ]
    assert [line["step"] for line in done.keeper.lines("validation")] == [0, 5]


def test_checkpoints_come_every_so_many_steps_and_once_after_each_validation() -> None:
    assert run(make_config(checkpoint_steps=2)).keeper.saved == [0, 2, 4, 5, 6, 8, 10]


def test_a_capped_validation_is_spread_over_the_split() -> None:
    config, keeper = make_config(epochs=1, validation_windows=2), ToyKeeper()
    state, toy = make_state(config), ToyObjective(ToyDataset(4))
    before = state.model(torch.tensor(toy.dataset.x["validation"][[0, 2]], dtype=torch.float32)[:, None])
    x = torch.tensor(toy.dataset.x["validation"][[0, 2]])[:, None]
    fit(state, toy, WindowSampler.of(4, config, seed=0), config, keeper=keeper)  # type: ignore[arg-type]
    assert keeper.lines("validation")[0]["loss"] == pytest.approx((before - 2 * x - 1).square().mean().item())


def test_patience_counts_epochs_without_a_better_validation() -> None:
    done = run(make_config(epochs=9, patience=2), worse=1.0)
    progress = done.state.progress
    assert (progress.step, progress.best_step, progress.stale) == (10, 0, 2)
    assert done.keeper.kept == [0]
    assert progress.best_loss == progress.initial_loss


def test_without_patience_training_goes_on_to_the_last_epoch() -> None:
    assert run(make_config(epochs=9, patience=None), worse=1.0).state.progress.step == 45


def test_better_weights_are_kept_after_their_checkpoint() -> None:
    done = run(make_config(epochs=3))
    losses = [line["loss"] for line in done.keeper.lines("validation")]
    assert losses == sorted(losses, reverse=True)
    assert done.keeper.kept == [0, 5, 10, 15]
    assert done.keeper.written == [(what, step) for step in (0, 5, 10, 15) for what in ("checkpoint", "best")]
    assert done.state.progress.best_loss == losses[-1]


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_window() -> None:
    config = make_config()
    state, keeper = make_state(config), ToyKeeper()
    sampler = WindowSampler.of(20, config, seed=3)
    culprit = int(sampler.draw(4)[2])  # in the second step
    objective = ToyObjective(ToyDataset(20), poisoned=frozenset({culprit}))
    with pytest.raises(NonFiniteLoss, match=rf"step 2.*windows {culprit} \(um:TOY, 1970-01-0\d \d\d:00"):
        fit(state, objective, sampler, config, keeper=keeper)  # type: ignore[arg-type]
    assert state.progress.step == len(keeper.lines("train")) == 1
    assert all(bool(parameter.isfinite().all()) for parameter in state.model.parameters())


def test_asked_to_stop_it_finishes_the_step_and_saves() -> None:
    config, keeper = make_config(), ToyKeeper(stop_at=3)
    with pytest.raises(Interrupted):
        run(config, keeper=keeper)
    assert keeper.saved == [0, 3]
    assert len(keeper.lines("train")) == 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("patience", 0), ("warmup_share", 1.0), ("learning_rate", 0.0), ("precision", "fp8")],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting}: expected .* found"):
        make_config(**{setting: value})


class Cliff(ToyObjective):
    """A finite loss whose gradient is not: the slope of a root at zero."""

    def losses(self, model: nn.Module, indices: Any, generator: torch.Generator) -> dict[str, Tensor]:
        found = super().losses(model, indices, generator)
        return {"loss": found["loss"] + (found["loss"] * 0).sqrt()}


def test_a_gradient_that_is_not_finite_stops_before_the_step_though_the_loss_is() -> None:
    config = make_config()
    state, keeper = make_state(config), ToyKeeper()
    before = [parameter.clone() for parameter in state.model.parameters()]
    sampler = WindowSampler.of(20, config, seed=3)
    with pytest.raises(NonFiniteLoss, match=r"step 1, found loss \S+, grad_norm nan; no step was taken"):
        fit(state, Cliff(ToyDataset(20)), sampler, config, keeper=keeper)  # type: ignore[arg-type]
    assert all(map(torch.equal, state.model.parameters(), before))
    assert keeper.lines("train") == []


def test_dropout_has_no_say_in_which_weights_are_the_best() -> None:
    config, keeper = make_config(epochs=1), ToyKeeper()
    state, toy = make_state(config), ToyObjective(ToyDataset(20))
    plain = state.model
    state.model = nn.Sequential(plain, nn.Dropout(0.9))
    with torch.no_grad():
        expected = float(toy.tally(plain, np.arange(5))["error"]) / 5
    fit(state, toy, WindowSampler.of(20, config, seed=3), config, keeper=keeper)  # type: ignore[arg-type]
    assert keeper.lines("validation")[0]["loss"] == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        trained = float(toy.tally(plain, np.arange(5))["error"]) / 5
    assert keeper.lines("validation")[1]["loss"] == pytest.approx(trained, rel=1e-6)


def test_asked_to_stop_during_a_validation_it_saves_and_judges_nothing() -> None:
    keeper = ToyKeeper(stop_at=0)
    with pytest.raises(Interrupted):
        run(make_config(), keeper=keeper)
    assert (keeper.saved, keeper.kept, keeper.told) == ([0], [], [])
