"""A training stage as a child process: killed, cancelled, without its tracker; resumable, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kronos_model.errors import ModelError
from kronos_model.jobs import StageConfig
from kronos_model.lock import locked
from storage.layout import Home
from tasks import train as train_module
from tasks.refs import PairRef, RunRef, TrainedRef
from tasks.tracking.runs import begin_run
from tasks.train import train
from tests.support.databases import lend_mlflow
from tests.support.training import Ground, line_count, make_ground

STEPS = 150
CONFIG = StageConfig(
    epochs=1,
    steps_per_epoch=STEPS,
    batch_size=8,
    learning_rate=1e-3,
    validation_windows=16,
    checkpoint_steps=10,
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("ground"), rows=900)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Where the MLflow store of these tests is."""
    home = Home.at(tmp_path_factory.mktemp("tracking"))
    lend_mlflow(home)
    return home


@pytest.fixture
def run(tracking: Home, request: pytest.FixtureRequest) -> RunRef:
    return begin_run(
        tracking, experiment="train", name="night", identity=request.node.name, params={}, tags={}
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Percentages shown, here without a Prefect server, of children that are looked after often."""
    shown: list[float] = []
    monkeypatch.setattr(train_module, "create_progress_artifact", lambda **_: "artifact")
    monkeypatch.setattr(
        train_module, "update_progress_artifact", lambda artifact, progress: shown.append(progress)
    )
    monkeypatch.setattr(train_module, "_POLL_S", 0.05)
    monkeypatch.setattr(train_module, "_TELL_S", 0.05)
    return shown


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    _watch(monkeypatch)


def _train(home: Home, ground: Ground, run: RunRef, **changes: Any) -> TrainedRef:
    pair = ground.pair
    start = PairRef(
        tokenizer=str(pair.tokenizer),
        tokenizer_digest=pair.tokenizer_digest,
        predictor=str(pair.predictor),
        predictor_digest=pair.predictor_digest,
        origin=pair.origin,
    )
    options: dict[str, Any] = {"config": CONFIG, "seed": 3, "threads": 1, "processes": 1} | changes
    return train.fn(home, "tokenizer", dataset=ground.dataset, start=start, run=run, **options)


@dataclass(frozen=True)
class Undisturbed:
    """A training that ran to its end, though MLflow was away at first."""

    trained: TrainedRef
    run: RunRef
    refused: int
    shown: list[float]


@pytest.fixture(scope="module")
def undisturbed(ground: Ground, tracking: Home, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = Home.at(tmp_path_factory.mktemp("undisturbed"))
    run = begin_run(tracking, experiment="train", name="night", identity="undisturbed", params={}, tags={})
    send, refused = MlflowClient.log_batch, []

    def log_batch(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        if len(refused) < 5:
            refused.append(named)
            raise MlflowException("Connection refused")
        return send(client, *arguments, **named)

    with pytest.MonkeyPatch.context() as monkeypatch:
        shown = _watch(monkeypatch)
        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
        return Undisturbed(_train(home, ground, run), run, len(refused), shown)


@contextmanager
def _meanwhile(home: Home, lines: int, act: Callable[[psutil.Process], object]) -> Iterator[list[int]]:
    """Act on the training child once it has written so many metrics; yields its process id, once known."""
    seen: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            jobs = list(home.jobs.glob("tokenizer-*"))
            if jobs and line_count(jobs[0]) >= lines:
                (child,) = [one for one in psutil.Process().children() if str(jobs[0]) in one.cmdline()]
                seen.append(child.pid)
                act(child)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        thread.join()


def _steps(run: RunRef) -> list[int]:
    history = MlflowClient(run.uri).get_metric_history(run.run_id, "tokenizer/train/loss")
    return sorted(point.step for point in history)


def test_a_finished_job_is_recognised_and_no_process_is_started(
    undisturbed: Undisturbed, ground: Ground, run: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = undisturbed.trained
    assert first.trained
    assert first.best_loss < first.initial_loss
    monkeypatch.setattr(train_module.subprocess, "Popen", None)
    again = _train(Home(Path(first.job).parents[1]), ground, run)
    assert again == replace(first, trained=False)
    assert _steps(run) == list(range(1, STEPS + 1)), "a run that has not seen its numbers gets them"


def test_a_killed_child_leaves_a_job_that_the_same_call_resumes(
    home: Home, ground: Ground, run: RunRef, undisturbed: Undisturbed
) -> None:
    with _meanwhile(home, 30, psutil.Process.kill) as killed, pytest.raises(ModelError) as caught:
        _train(home, ground, run)
    assert killed
    sentence = str(caught.value)
    (job,) = home.jobs.glob("tokenizer-*")
    assert sentence.startswith("Training the tokenizer ended with exit code -9 (it wrote no message)")
    assert f"the job in {job} is resumable, so run the same command again" in sentence
    assert "\n" not in sentence
    resumed = _train(home, ground, run)
    assert resumed == replace(undisturbed.trained, job=resumed.job, best=resumed.best)
    assert _steps(run) == list(range(1, STEPS + 1))


def test_cancelling_ends_the_child_at_a_checkpoint_within_seconds(
    home: Home, ground: Ground, run: RunRef, undisturbed: Undisturbed
) -> None:
    cancelled_at: list[float] = []

    def cancel(_: psutil.Process) -> None:
        cancelled_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with _meanwhile(home, 30, cancel) as children, pytest.raises(KeyboardInterrupt):
        _train(home, ground, run)
    assert time.monotonic() - cancelled_at[0] < 12
    assert not psutil.pid_exists(children[0]), "an orphan goes on training"
    (job,) = home.jobs.glob("tokenizer-*")
    assert (job / "checkpoint").is_dir()
    assert not (job / "result.json").exists()
    done = line_count(job)
    resumed = _train(home, ground, run)
    assert line_count(job) > done
    assert resumed == replace(undisturbed.trained, job=resumed.job, best=resumed.best)
    assert _steps(run) == list(range(1, STEPS + 1))


def test_a_child_that_does_not_listen_is_killed(
    home: Home, ground: Ground, run: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deafen(child: psutil.Process) -> None:
        child.suspend()  # SIGTERM stays pending
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train_module, "_STOP_S", 0.5)
    with _meanwhile(home, 5, deafen) as children, pytest.raises(KeyboardInterrupt):
        _train(home, ground, run)
    assert not psutil.pid_exists(children[0])


def test_an_outage_of_mlflow_neither_ends_a_training_nor_loses_its_numbers(undisturbed: Undisturbed) -> None:
    assert undisturbed.refused == 5
    assert _steps(undisturbed.run) == list(range(1, STEPS + 1))
    assert undisturbed.trained.steps == STEPS


def test_the_progress_shown_grows_to_its_end(undisturbed: Undisturbed) -> None:
    assert undisturbed.shown == sorted(undisturbed.shown)
    assert undisturbed.shown[0] < 100
    assert undisturbed.shown[-1] == 100


def test_the_childs_own_sentence_is_passed_on(
    home: Home, ground: Ground, run: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train_module.subprocess, "Popen", None)  # the job is written, no process starts
        with pytest.raises(TypeError):
            _train(home, ground, run, seed=5)
    (job,) = home.jobs.glob("tokenizer-*")
    with locked(job / ".lock", what="a test"), pytest.raises(ModelError) as caught:
        _train(home, ground, run, seed=5)
    assert f"the training job {job} is already being run by process {os.getpid()}" in str(caught.value)
    assert "wait until it has ended or stop it first" in str(caught.value)
    assert "exit code" not in str(caught.value)


def _family(child: psutil.Process) -> list[psutil.Process]:
    """The child, and the processes that it has launched."""
    return [child, *child.children(recursive=True)]


def test_two_processes_train_through_a_kill_and_a_cancellation_and_end_where_one_does(
    home: Home, ground: Ground, run: RunRef, undisturbed: Undisturbed
) -> None:
    with (
        _meanwhile(home, 30, lambda launcher: launcher.children()[1].kill()),
        pytest.raises(ModelError) as caught,
    ):
        _train(home, ground, run, processes=2)
    (job,) = home.jobs.glob("tokenizer-*")
    assert str(caught.value).startswith(
        "Training the tokenizer ended with exit code 137 (process 2 of 2 was ended by SIGKILL); "
        f"the job in {job} is resumable, so run the same command again"
    )

    with locked(job / ".torchrun.lock", what="a test"), pytest.raises(ModelError) as caught:
        _train(home, ground, run, processes=2)
    sentence = str(caught.value)
    assert sentence.startswith(f"the training job {job} is already being run by process {os.getpid()}")
    assert "\n" not in sentence

    family: list[psutil.Process] = []
    cancelled_at: list[float] = []

    def cancel(launcher: psutil.Process) -> None:
        family.extend(_family(launcher))
        cancelled_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with _meanwhile(home, 60, cancel), pytest.raises(KeyboardInterrupt):
        _train(home, ground, run, processes=2)
    assert time.monotonic() - cancelled_at[0] < 12
    assert len(family) == 3
    assert not [process for process in family if process.is_running()], "an orphan goes on training"
    assert not (job / "result.json").exists()

    trained = _train(home, ground, run, processes=2)
    expected = undisturbed.trained
    # The same windows in the same order, summed in another one: a bit of a code that flips moves what comes after.
    assert trained.initial_loss == pytest.approx(expected.initial_loss, rel=1e-4)
    assert trained.best_loss == pytest.approx(expected.best_loss, rel=1e-2)
    elsewhere = {
        name: getattr(trained, name) for name in ("job", "best", "digest", "initial_loss", "best_loss")
    }
    assert trained == replace(expected, **elsewhere)
    assert _steps(run) == list(range(1, STEPS + 1)), "every step once, told by one of the two"
    assert not (job / ".torchrun").exists()


def test_a_launcher_that_does_not_listen_is_killed_with_all_that_it_launched() -> None:
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen(['sleep', '60'], start_new_session=True); print(flush=True); time.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    launcher.stdout.readline()
    family = _family(psutil.Process(launcher.pid))
    train_module._kill(launcher)
    assert len(family) == 2
    assert not [process for process in family if process.is_running()]
    launcher.stdout.close()
