"""A checkpoint brings back everything, and is whole or not there."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from kronos_model import checkpoint
from kronos_model.checkpoint import Progress, TrainState, restore_checkpoint, save_checkpoint
from kronos_model.distributed import World
from kronos_model.errors import ModelError
from kronos_model.fit import make_optimizer
from kronos_model.jobs import StageConfig


class Apart(World):
    """Processes of which nobody waits for another."""

    def wait(self) -> None:
        pass


def make_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 1))
    return TrainState(
        model=model,
        optimizer=make_optimizer(model, StageConfig(learning_rate=0.1)),
        generator=torch.Generator().manual_seed(seed),
    )


def take_steps(state: TrainState, count: int) -> None:
    for _ in range(count):
        x = torch.rand(4, 3, generator=state.generator)
        state.optimizer.zero_grad()
        state.model(x).square().mean().backward()  # dropout draws from the default generator
        state.optimizer.step()
        state.progress.step += 1


def parameters(state: TrainState) -> list[list[float]]:
    return [parameter.flatten().tolist() for parameter in state.model.parameters()]


def test_a_restored_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    state = make_state(1)
    take_steps(state, 3)
    state.progress = Progress(
        step=3, cursor=12, validated=0, initial_loss=1 / 3, best_loss=0.1, lines=7, stale=2
    )
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    take_steps(state, 4)

    other = make_state(2)
    take_steps(other, 1)
    assert restore_checkpoint(tmp_path / "checkpoint", other, job="a")
    assert other.progress == Progress(
        step=3, cursor=12, validated=0, initial_loss=1 / 3, best_loss=0.1, lines=7, stale=2
    )
    take_steps(other, 4)
    assert parameters(other) == parameters(state)
    moments, expected = other.optimizer.state_dict()["state"], state.optimizer.state_dict()["state"]
    assert all(
        torch.equal(moments[key][name], value) for key in expected for name, value in expected[key].items()
    )
    assert other.progress.step == state.progress.step


def test_a_fresh_optimizer_is_saved_and_restored(tmp_path: Path) -> None:
    state, other = make_state(1), make_state(2)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    restore_checkpoint(tmp_path / "checkpoint", other, job="a")
    for one in (other, state):
        torch.manual_seed(0)
        take_steps(one, 2)
    assert parameters(other) == parameters(state)


def test_a_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    state = make_state(1)
    take_steps(state, 1)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "progress.json",
        "tensors.safetensors",
    ]
    with safe_open(tmp_path / "checkpoint" / "tensors.safetensors", "pt") as file:
        assert {"model.0.weight", "optimizer.0.exp_avg", "random.0.cpu", "random.0.sampling"} <= set(
            file.keys()
        )
        assert file.get_tensor("random.0.cpu").dtype == torch.uint8


def test_where_there_is_no_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    state = make_state(1)
    before = parameters(state)
    assert not restore_checkpoint(tmp_path / "checkpoint", state, job="a")
    assert parameters(state) == before


def test_a_write_that_dies_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(1)
    take_steps(state, 1)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    saved = parameters(state)
    take_steps(state, 1)

    def die(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "checkpoint", state, job="a")
    other = make_state(2)
    assert restore_checkpoint(tmp_path / "checkpoint", other, job="a")
    assert parameters(other) == saved


def test_a_death_between_the_two_moves_of_a_replacement_is_settled(tmp_path: Path) -> None:
    state = make_state(1)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.previous")
    other = make_state(2)
    assert restore_checkpoint(tmp_path / "checkpoint", other, job="a")
    assert parameters(other) == parameters(state)


def test_a_checkpoint_of_another_job_or_another_format_is_refused(tmp_path: Path) -> None:
    state = make_state(1)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    with pytest.raises(ModelError, match=r"'job': 'b'.*found.*'job': 'a'.*new job directory"):
        restore_checkpoint(tmp_path / "checkpoint", state, job="b")
    (tmp_path / "checkpoint" / "progress.json").write_text('{"version": 1, "job": "a", "processes": 1}')
    with pytest.raises(ModelError, match=r"found \{'version': 1"):
        restore_checkpoint(tmp_path / "checkpoint", state, job="a", world=World())


def test_a_damaged_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    state = make_state(1)
    save_checkpoint(tmp_path / "checkpoint", state, job="a")
    (tmp_path / "checkpoint" / "tensors.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"cannot be read .* delete that folder"):
        restore_checkpoint(tmp_path / "checkpoint", state, job="a")


def test_the_best_loss_is_the_lowest_and_the_rest_are_stale() -> None:
    progress, losses = Progress(), [3.0, 2.0, 2.0, 2.5, 1.0]
    better = []
    for step, loss in enumerate(losses):
        progress.step = step
        better.append(progress.judge(loss))
    assert better == [True, True, False, False, True]
    assert (progress.initial_loss, progress.best_loss, progress.best_step, progress.stale) == (3.0, 1.0, 4, 0)


def test_processes_that_go_on_from_a_checkpoint_of_fewer_draw_each_their_own_numbers(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", make_state(1), job="a")
    dropout, sampling = [], []
    for rank in range(3):
        state = make_state(1)
        # Only the leader waits for nobody here: the folder is settled already.
        assert restore_checkpoint(tmp_path / "checkpoint", state, job="a", world=Apart(rank=rank, size=3))
        dropout.append(tuple(torch.rand(4).tolist()))
        sampling.append(tuple(torch.rand(4, generator=state.generator).tolist()))
    assert len({*dropout, *sampling}) == 6
