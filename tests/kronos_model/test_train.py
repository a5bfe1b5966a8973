"""Jobs as real processes: finished, killed, stopped, refused, and spread over two processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import model as upstream
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kronos_model.config import PRESETS
from kronos_model.errors import DataError, MismatchedPair, ModelError
from kronos_model.files import model_digest
from kronos_model.fit import Interrupted
from kronos_model.hub import lineage_of, read_metadata
from kronos_model.jobs import Job, Reference, Stage, StageConfig, read_job, write_job
from kronos_model.lock import locked
from kronos_model.objective import PredictorObjective
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.train import main, run_job
from tests.support.training import ROOT, Ground, line_count, make_ground, read_metrics, start, wait_for

Command = Callable[[Path], tuple[int, str, str]]
STAGES: tuple[Stage, ...] = ("tokenizer", "predictor")
RESULT = {
    "stage",
    "best_step",
    "best_validation_loss",
    "initial_validation_loss",
    "steps",
    "epochs",
    "stopped",
    "digest",
    "parameters",
    "seconds",
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Models with dropout, so that every random generator matters."""
    return make_ground(tmp_path_factory.mktemp("noisy"), dropout=0.1)


def forget_tokens(ground: Ground) -> None:
    """So that the next job encodes again."""
    for path in (ground.dataset.path / "tokens").rglob("*.npy"):
        path.unlink()


def same_outcome(first: Path, second: Path) -> None:
    """Parameters, optimizer, random generators, metrics and best weights, bit for bit."""
    ours, theirs = (load_file(job / "checkpoint" / "tensors.safetensors") for job in (first, second))
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimizer.") for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read_metrics(first) == read_metrics(second)
    assert model_digest(first / "best") == model_digest(second / "best")
    results = [json.loads((job / "result.json").read_text()) | {"seconds": 0} for job in (first, second)]
    assert results[0] == results[1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_killed_again_and_again_ends_as_if_nothing_had_happened(noisy: Ground, stage: Stage) -> None:
    settings = {"epochs": 3, "steps_per_epoch": 17, "accumulation": 2, "checkpoint_steps": 5}
    calm, stormy = (noisy.job(f"{name}-{stage}", stage, **settings) for name in ("calm", "stormy"))
    forget_tokens(noisy)
    run_job(calm)
    forget_tokens(noisy)

    draw, total, lives = random.Random(f"storm {stage}"), line_count(calm), 3
    for life in range(lives):  # each lasts until a random line of its part, and a little longer
        process = start(stormy)
        line = draw.randrange(total * life // lives, total * (life + 1) // lives - 3)
        wait_for(lambda line=line: line_count(stormy) > line, process)
        time.sleep(draw.uniform(0, 0.01))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    run_job(stormy)
    same_outcome(calm, stormy)


def test_sigterm_ends_the_step_saves_and_exits_143(noisy: Ground) -> None:
    calm, stopped = (
        noisy.job(name, "predictor", epochs=2, checkpoint_steps=1000) for name in ("unstopped", "stopped")
    )
    run_job(calm)
    process = start(stopped)
    wait_for(lambda: len(read_metrics(stopped, phase="train")) > 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 143
    progress = json.loads((stopped / "checkpoint" / "progress.json").read_text())["progress"]
    assert progress["step"] == read_metrics(stopped)[-1]["step"] >= 6
    assert not (stopped / "result.json").exists()
    run_job(stopped)
    same_outcome(calm, stopped)


def test_a_job_whose_parent_is_gone_stops_and_can_be_resumed(noisy: Ground) -> None:
    calm, orphan = (noisy.job(name, "tokenizer", epochs=2) for name in ("with parent", "orphan"))
    assert start(calm, "--parent", str(os.getpid())).wait(60) == 0
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    assert start(orphan, "--parent", ended.stdout.strip()).wait(60) == 143
    assert not (orphan / "result.json").exists()
    run_job(orphan)
    same_outcome(calm, orphan)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line in this process: exit code, stdout, stderr."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]

    def run(job: Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(job)])
        return code, *capfd.readouterr()

    yield run
    for number, handler in handlers:
        signal.signal(number, handler)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_job_says_what_it_reached(ground: Ground, stage: Stage, command: Command) -> None:
    job = ground.job(f"finished-{stage}", stage, epochs=2, validation_windows=20)
    assert command(job) == (0, "", "")
    result = json.loads((job / "result.json").read_text())
    assert set(result) == RESULT
    assert result["best_validation_loss"] < result["initial_validation_loss"]
    assert (result["stage"], result["epochs"], result["stopped"]) == (stage, 2, "finished")
    assert result["digest"] == model_digest(job / "best")
    losses = {line["step"]: line["loss"] for line in read_metrics(job, phase="validation")}
    assert losses[result["best_step"]] == result["best_validation_loss"] == min(losses.values())
    assert losses[0] == result["initial_validation_loss"]

    assert command(job) == (0, "", f"{job} is finished; its result is in result.json\n")


def test_the_best_weights_load_here_and_upstream_and_say_where_they_come_from(ground: Ground) -> None:
    tokenizer = ground.job("best-tokenizer", "tokenizer", epochs=1)
    predictor = ground.job("best-predictor", "predictor", epochs=1)
    run_job(tokenizer)
    run_job(predictor)
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    ours = KronosTokenizer.from_pretrained(tokenizer / "best").encode(x)
    theirs = upstream.KronosTokenizer.from_pretrained(tokenizer / "best").eval()
    assert torch.equal(ours, theirs.encode(x))
    assert Kronos.from_pretrained(predictor / "best").config == PRESETS["tiny"].predictor

    told = read_metadata(predictor / "best")
    assert told is not None
    training = told.pop("training")
    assert told == {
        "version": 1,
        "part": "predictor",
        "interval": "1h",
        "lookback": 16,
        "horizon": 4,
        "max_context": 512,
        "s2_decode": "trained",
        "normaliser": {"kind": "window_zscore", "clip": 5.0, "floor": "relative", "state": {}},
        "prices_only": False,
        "tokenizer_digest": ground.pair.tokenizer_digest,
    }
    result = json.loads((predictor / "result.json").read_text())
    assert training["dataset"] == ground.dataset.digest
    assert training["start"] == ground.pair.predictor_digest
    assert training["lineage"] == lineage_of(predictor / "best") == "scratch"
    assert (training["step"], training["validation_loss"]) == (
        result["best_step"],
        result["best_validation_loss"],
    )
    own = read_metadata(tokenizer / "best")
    assert own is not None
    assert own["tokenizer_digest"] == model_digest(tokenizer / "best")


def test_weights_that_only_get_worse_leave_the_starting_ones_the_best(ground: Ground) -> None:
    job = ground.job(
        "worse", "predictor", epochs=9, steps_per_epoch=5, patience=2, learning_rate=5.0, clip_norm=99.0
    )
    result = run_job(job)
    assert (result["best_step"], result["steps"], result["stopped"]) == (0, 10, "patience")
    best, begun = (
        load_file(folder / "model.safetensors") for folder in (job / "best", ground.pair.predictor)
    )
    assert all(torch.equal(best[name], begun[name]) for name in begun)


def test_best_weights_lost_between_their_checkpoint_and_best_are_written_again(ground: Ground) -> None:
    calm, broken = (ground.job(name, "tokenizer", epochs=1) for name in ("unbroken", "broken"))
    run_job(calm)
    asked = iter([False] * 3)
    with pytest.raises(Interrupted):  # in the validation before the first step
        run_job(broken, stopping=lambda: next(asked, True))
    assert not (broken / "best").exists()
    run_job(broken)
    shutil.rmtree(broken / "best")
    (broken / "result.json").unlink()
    assert run_job(broken)["digest"] == model_digest(calm / "best")


def test_live_tokens_train_the_same_weights_as_stored_ones(ground: Ground) -> None:
    stored, live = (
        ground.job(f"cache-{size}", "predictor", epochs=1, token_cache_mb=size) for size in (8, 0)
    )
    run_job(stored)
    forget_tokens(ground)
    run_job(live)
    assert not list((ground.dataset.path / "tokens").rglob("*.npy"))
    ours, theirs = (load_file(job / "best" / "model.safetensors") for job in (stored, live))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loss_that_is_not_finite_exits_1_with_one_sentence(tmp_path: Path, command: Command) -> None:
    sick = make_ground(tmp_path)
    features = next((sick.dataset.path / "series").glob("um-DOGE*")) / "features.npy"
    values = np.load(features)
    values[40] = np.nan
    np.save(features, values)
    code, printed, said = command(sick.job("sick", "tokenizer", epochs=1))
    assert (code, printed) == (1, "")
    assert said.count("\n") == 1
    assert "expected finite losses in step" in said
    assert "um:DOGEUSDT" in said


def test_a_job_that_is_running_is_refused_to_a_second_process(ground: Ground, command: Command) -> None:
    job = ground.job("busy", "tokenizer")
    with locked(job / ".lock", what="the test"):
        code, printed, said = command(job)
    assert (code, printed) == (2, "")
    expected = f"the training job {job} is already being run by process {os.getpid()} since "
    assert said.startswith(expected)
    assert said.count("\n") == 1


def test_jobs_that_cannot_run_say_what_they_expected(ground: Ground, tmp_path: Path) -> None:
    good = read_job(ground.job("good", "predictor"))
    assert good.predictor is not None
    narrow = replace(PRESETS["tiny"].tokenizer, s1_bits=4, s2_bits=4)
    KronosTokenizer(narrow).save_pretrained(tmp_path / "narrow")
    other = Reference(path=str(tmp_path / "narrow"), digest=model_digest(tmp_path / "narrow"))
    cases: list[tuple[Job, type[ModelError], str]] = [
        (
            replace(good, dataset=replace(good.dataset, path="gone")),
            DataError,
            "expected a complete dataset at .*gone",
        ),
        (
            replace(good, dataset=replace(good.dataset, digest="0" * 64)),
            DataError,
            "expected the dataset 000.*found",
        ),
        (
            replace(good, tokenizer=replace(good.tokenizer, digest="1")),
            ModelError,
            "expected the tokenizer 1 at",
        ),
        (
            replace(good, predictor=replace(good.predictor, digest="2")),
            ModelError,
            "expected the predictor 2 at",
        ),
        (replace(good, tokenizer=other), MismatchedPair, r"reads tokens of 6\+6 bits, .* makes 4\+4"),
    ]
    for number, (job, kind, sentence) in enumerate(cases):
        write_job(tmp_path / str(number), job)
        with pytest.raises(kind, match=sentence):
            run_job(tmp_path / str(number))


def test_a_job_changed_after_its_start_is_refused(ground: Ground) -> None:
    directory = ground.job("changed", "tokenizer", epochs=1)
    run_job(directory)
    (directory / "result.json").unlink()
    job = read_job(directory)
    write_job(directory, replace(job, threads=2))  # decides nothing
    run_job(directory)
    (directory / "result.json").unlink()
    write_job(directory, replace(job, config=replace(job.config, epochs=2)))
    with pytest.raises(ModelError, match="write a new job directory"):
        run_job(directory)


def test_a_job_is_read_as_it_was_written_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    weights = Reference(path="../pair", digest="abc")
    config = StageConfig(epochs=3, steps_per_epoch=9, patience=None)
    job = Job(
        stage="predictor", dataset=weights, tokenizer=weights, predictor=weights, config=config, threads=2
    )
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    told = json.loads((tmp_path / "job.json").read_text())
    for change, sentence in (
        ({"speed": 1}, "Job knows no speed; it knows"),
        ({"config": {"epoch": 1}}, "StageConfig knows no epoch"),
        ({"config": {"epochs": 0}}, "epochs: expected at least 1, found 0; raise it"),
        ({"predictor": None}, "found null in the predictor stage"),
        ({"version": 9}, "expected a training job of version 1"),
    ):
        (tmp_path / "job.json").write_text(json.dumps(told | change))
        with pytest.raises(ModelError, match=sentence):
            read_job(tmp_path)


def test_paths_may_be_relative_to_the_job_directory(ground: Ground) -> None:
    directory = ground.job("relative", "tokenizer", epochs=1)
    job = read_job(directory)

    def near(reference: Reference) -> Reference:
        return replace(reference, path=os.path.relpath(reference.path, directory))

    write_job(directory, replace(job, dataset=near(job.dataset), tokenizer=near(job.tokenizer)))
    assert run_job(directory)["stopped"] == "finished"


def torchrun(*program: str) -> None:
    """Two processes of a program that meet on the loopback, whatever this machine calls itself.

    One program joins once: torchrun's store keeps the first meeting's addresses, and a second meeting of the
    same processes may read them.
    """
    options = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, "--local-addr=127.0.0.1", *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr


def test_two_processes_sum_and_gather_over_each_other(tmp_path: Path) -> None:
    torchrun(str(ROOT / "tests" / "support" / "two_processes.py"), str(tmp_path))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    expected = {"gradients": [[3.0, 6.0], [3.0], [3.0, 4.0]], "any": [True, False], "gathered": [[0], [1]]}
    assert found == [expected, expected]


def test_two_processes_train_as_one_end_equal_and_go_on_alone(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, double = (ground.job(name, "predictor", epochs=2) for name in ("single", "double"))
    alone = watch(monkeypatch)
    run_job(single)
    expected = [step.tolist() for step in alone]
    stop_after = 9
    program = str(ROOT / "tests" / "support" / "two_trainers.py")
    torchrun(program, str(double), str(tmp_path), str(stop_after))

    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    together = [interleaved(*halves) for halves in zip(*seen, strict=True)]
    assert together == expected[: len(together)]

    alone.clear()
    run_job(double)  # one process takes over from two
    assert together + [step.tolist() for step in alone] == expected

    def losses(job: Path, phase: str) -> list[float]:
        return [line["s1_loss"] for line in read_metrics(job, phase=phase)]

    # coarse tokens are drawn by each process for itself, which changes little in a few steps
    assert losses(double, "validation")[0] == pytest.approx(losses(single, "validation")[0], rel=1e-6)
    assert losses(double, "train") == pytest.approx(losses(single, "train"), rel=5e-3)
    assert json.loads((double / "result.json").read_text())["steps"] == len(losses(single, "train"))


def watch(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The train windows of every step from now on."""
    seen: list[np.ndarray] = []
    original = PredictorObjective.losses

    def losses(self: PredictorObjective, model: torch.nn.Module, indices: np.ndarray, draw: torch.Generator):  # type: ignore[no-untyped-def]
        seen.append(indices)
        return original(self, model, indices, draw)

    monkeypatch.setattr(PredictorObjective, "losses", losses)
    return seen


def interleaved(first: list[int], second: list[int]) -> list[int]:
    """Undo the division of a batch between two processes."""
    whole = [0] * (len(first) + len(second))
    whole[::2], whole[1::2] = first, second
    return whole


@pytest.mark.parametrize("settings", [{"recompute": True}, {"recompute": True, "lora_rank": 2}])
def test_recomputed_activations_train_the_same_weights(noisy: Ground, settings: dict[str, int]) -> None:
    name = "-".join(settings)
    remembered, recomputed = (
        noisy.job(f"{name}-{on}", "predictor", epochs=1, steps_per_epoch=4, **settings | {"recompute": on})
        for on in (False, True)
    )
    run_job(remembered)
    run_job(recomputed)
    ours, theirs = (load_file(job / "best" / "model.safetensors") for job in (remembered, recomputed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_imports_nothing_but_what_a_bare_machine_has() -> None:
    """Whatever else is loaded, those packages themselves bring."""
    theirs = "torch, numpy, scipy, safetensors.torch, huggingface_hub, huggingface_hub.hf_api, torch._dynamo"

    def loaded(modules: str) -> set[str]:
        program = f"import {modules}, sys; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return {name.partition(".")[0] for name in done.stdout.split()}

    assert loaded("kronos_model.train") - loaded(theirs) - sys.stdlib_module_names == {"kronos_model"}


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_trains_to_nearly_the_same_loss(ground: Ground, stage: Stage) -> None:
    full, half = (
        run_job(ground.job(f"{stage}-{precision}", stage, epochs=1, precision=precision))[
            "best_validation_loss"
        ]
        for precision in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, rel=0.02)
    assert half != full
