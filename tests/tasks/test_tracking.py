"""Numbers on their way into a real MLflow store: once each, none lost, however often a job or MLflow is interrupted."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from storage.layout import Home
from tasks.refs import RunRef
from tasks.tracking.runs import begin_run, end_dead_runs, end_run, log_artifact, log_dataset, log_table
from tasks.tracking.store import prepare_store, tolerant
from tasks.tracking.tail import MetricTail
from tests.support.databases import lend_mlflow

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import sys
from storage.layout import Home
from tasks.tracking.runs import begin_run
sys.stdin.readline()
begin_run(Home.at(sys.argv[1]), experiment="demo", name="night", identity=sys.argv[2], params={"seed": 0}, tags={})
"""
PREPARE = """
import sys
from storage.layout import Home
from tasks.tracking.store import prepare_store
prepare_store(Home.at(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home.at(tmp_path_factory.mktemp("tracking") / "home")
    lend_mlflow(home)
    return home


@pytest.fixture
def begin(home: Home, request: pytest.FixtureRequest) -> Callable[..., RunRef]:
    """Begin or resume the run of this test."""

    def of_this_test(**changes: Any) -> RunRef:
        arguments: dict[str, Any] = {
            "experiment": "demo",
            "name": "night",
            "identity": request.node.name,
            "params": {},
            "tags": {},
        }
        return begin_run(home, **(arguments | changes))

    return of_this_test


@pytest.fixture
def run(begin: Callable[..., RunRef]) -> RunRef:
    return begin()


def _client(run: RunRef) -> MlflowClient:
    return MlflowClient(run.uri)


def _points(run: RunRef, name: str = "predictor/train/loss") -> list[tuple[int, float]]:
    """Every point of a metric as stored, in the order of steps."""
    found = _client(run).get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in found)


def _line(step: int, phase: str = "train", **values: float | None) -> str:
    return json.dumps({"phase": phase, "step": step, "epoch": 0, "loss": 1 / step, **values}) + "\n"


def _losses(steps: Sequence[int]) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def _send(tail: MetricTail) -> None:
    tail.poll()
    tail.send()


# runs


def test_a_run_is_resumed_by_its_identity_and_not_doubled(begin: Callable[..., RunRef]) -> None:
    first = begin(params={"dataset.lookback": 24}, tags={"kronos.version": "1"})
    end_run(first, "FAILED")
    second = begin(params={"dataset.lookback": 24}, tags={"kronos.version": "2"})
    assert second == first
    stored = _client(first).get_run(first.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"dataset.lookback": "24"}
    assert stored.data.tags["kronos.version"] == "2"
    end_run(second, "FINISHED")
    assert _client(first).get_run(first.run_id).info.status == "FINISHED"


def test_long_values_and_many_settings_are_kept_up_to_mlflows_limits(begin: Callable[..., RunRef]) -> None:
    many = {f"setting.{index}": str(index) for index in range(250)}
    run = begin(params=many | {"series": "x" * 7_000, "empty": ""})
    stored = _client(run).get_run(run.run_id).data.params
    assert stored == many | {"series": "x" * 6_000, "empty": ""}


def test_an_experiment_deleted_in_the_ui_is_used_again(begin: Callable[..., RunRef]) -> None:
    first = begin(experiment="tidied away")
    _client(first).delete_experiment(first.experiment_id)
    second = begin(experiment="tidied away")
    assert second.experiment_id == first.experiment_id
    assert _client(second).get_run(second.run_id).info.status == "RUNNING"


def test_two_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(tmp_path / "home"), identity],
            cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for identity in ("first", "second")
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    client = MlflowClient(Home(tmp_path / "home").mlflow_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "demo"]
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_process_killed_while_it_makes_a_store_leaves_none_behind(tmp_path: Path) -> None:
    home, deadline = Home.at(tmp_path / "home"), time.monotonic() + 120
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(home.root)], cwd=ROOT)
    while not list(home.root.glob(".mlflow.*.tmp.db")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (home.root / "mlflow.db").exists()
    assert MlflowClient(prepare_store(home)).search_experiments()
    assert list(home.root.glob(".mlflow.*")) == []


def test_runs_that_died_running_are_killed_and_those_of_other_homes_left_alone(
    home: Home, begin: Callable[..., RunRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = begin(experiment="kronos-demo", identity="dead")
    done = begin(experiment="kronos-demo", identity="done")
    end_run(done, "FINISHED")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("tasks.tracking.runs.socket.gethostname", lambda: "elsewhere")
        other = begin(experiment="kronos-demo", identity="other")
    end_dead_runs(home)
    status = {
        one: _client(run).get_run(run.run_id).info.status
        for one, run in {"dead": dead, "done": done, "other": other}.items()
    }
    assert status == {"dead": "KILLED", "done": "FINISHED", "other": "RUNNING"}
    assert begin(experiment="kronos-demo", identity="dead").run_id == dead.run_id
    assert _client(dead).get_run(dead.run_id).info.status == "RUNNING"


def test_an_experiment_that_another_process_makes_meanwhile_is_used(
    begin: Callable[..., RunRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = begin(experiment="contested", identity="theirs")
    look, answers = MlflowClient.get_experiment_by_name, iter([True])

    def too_early(client: MlflowClient, name: str) -> Any:
        return None if next(answers, False) else look(client, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert begin(experiment="contested").experiment_id == theirs.experiment_id


def test_a_table_shows_in_the_run_and_a_second_one_replaces_it(run: RunRef) -> None:
    for skill in (0.1, 0.2):
        log_table(run, [{"model": "base", "skill": None}, {"model": "new", "skill": skill}], "board.json")
    table = json.loads(Path(_client(run).download_artifacts(run.run_id, "board.json")).read_text())
    assert table == {"columns": ["model", "skill"], "data": [["base", None], ["new", 0.2]]}
    shown = json.loads(_client(run).get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert shown == [{"path": "board.json", "type": "table"}]


def test_files_and_folders_are_copied_into_the_run(run: RunRef, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    for path in (tmp_path / "best" / "config.json", tmp_path / "losses.png"):
        path.write_bytes(b"content")
    log_artifact(run, tmp_path / "best", "model/predictor")
    log_artifact(run, tmp_path / "losses.png", "figures")
    for name in ("model/predictor/config.json", "figures/losses.png"):
        assert Path(_client(run).download_artifacts(run.run_id, name)).read_bytes() == b"content"


def test_the_same_dataset_twice_is_one_input(run: RunRef) -> None:
    for _ in range(2):
        log_dataset(run, path="/datasets/ab", digest="a" * 64, name="demo")
    (found,) = _client(run).get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.digest, json.loads(found.dataset.source)) == ("a" * 36, {"uri": "/datasets/ab"})


# metrics.jsonl


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_file_that_grows_is_sent_step_by_step_without_its_unfinished_line(
    run: RunRef, metrics: Path
) -> None:
    tail = MetricTail(run, metrics, "predictor")
    assert tail.poll() is None
    half = _line(3)
    metrics.write_text(_line(1) + _line(2) + half[:20])
    newest = tail.poll()
    assert newest is not None
    assert newest["step"] == 2
    tail.send()
    assert _points(run) == _losses([1, 2])
    with metrics.open("a") as file:
        file.write(half[20:] + _line(3, "validation", loss=0.5))
    _send(tail)
    assert _points(run) == _losses([1, 2, 3])
    assert _points(run, "predictor/validation/loss") == [(3, 0.5)]


def test_validation_before_the_first_step_is_sent_and_what_has_no_number_is_not(
    run: RunRef, metrics: Path
) -> None:
    start = json.dumps({"phase": "validation", "step": 0, "epoch": 0, "loss": 4.0}) + "\n"
    encode = json.dumps({"phase": "encode", "step": 0, "train_windows": 5, "train_total": 9}) + "\n"
    metrics.write_text(encode + start + _line(1, gradient=None))
    _send(MetricTail(run, metrics, "predictor"))
    assert _points(run, "predictor/validation/loss") == [(0, 4.0)]
    assert _points(run, "predictor/train/gradient") == []
    assert not [name for name in _client(run).get_run(run.run_id).data.metrics if "encode" in name]


def _cut_in_place(metrics: Path, text: str) -> None:
    with metrics.open("r+") as file:
        file.truncate(0)
        file.write(text)


def _replace(metrics: Path, text: str) -> None:
    draft = metrics.with_suffix(".tmp")
    draft.write_text(text)
    draft.replace(metrics)


@pytest.mark.parametrize("cut", [_cut_in_place, _replace], ids=["truncated", "replaced"])
@pytest.mark.parametrize("back_to", [0, 2, 4])
def test_a_resumed_job_that_cuts_its_metrics_sends_each_step_once(
    cut: Callable[[Path, str], None], back_to: int, run: RunRef, metrics: Path
) -> None:
    tail = MetricTail(run, metrics, "predictor")
    metrics.write_text("".join(_line(step) for step in range(1, 6)))
    _send(tail)
    cut(metrics, "".join(_line(step) for step in range(1, back_to + 1)))
    _send(tail)
    with metrics.open("a") as file:
        file.writelines(_line(step) for step in range(back_to + 1, 8))
    _send(tail)
    assert _points(run) == _losses(range(1, 8))


def test_a_file_replaced_by_a_longer_one_is_read_from_its_start(run: RunRef, metrics: Path) -> None:
    tail = MetricTail(run, metrics, "predictor")
    metrics.write_text(_line(1))
    _send(tail)
    _replace(metrics, "".join(_line(step) for step in range(1, 5)))
    _send(tail)
    assert _points(run) == _losses(range(1, 5))


def test_another_process_that_goes_on_sends_only_what_is_new(run: RunRef, metrics: Path) -> None:
    metrics.write_text("".join(_line(step) for step in range(1, 4)))
    _send(MetricTail(run, metrics, "predictor"))
    with metrics.open("a") as file:
        file.writelines(_line(step) for step in range(4, 6))
    for _ in range(2):
        _send(MetricTail(run, metrics, "predictor"))
    assert _points(run) == _losses(range(1, 6))


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """MLflow takes nothing while the list says so."""
    down, send = [True], MlflowClient.log_batch

    def log_batch(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        if down[0]:
            raise MlflowException("API request failed with exception: Connection refused\nsecond line")
        return send(client, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    return down


def test_an_outage_keeps_the_numbers_and_sends_them_afterwards(
    run: RunRef, metrics: Path, outage: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    tail = MetricTail(run, metrics, "predictor")
    for step in range(1, 4):
        with metrics.open("a") as file:
            file.write(_line(step))
        tail.poll()
        with tolerant("predictor metrics"):
            tail.send()
    assert _points(run) == []
    assert "MLflow did not take predictor metrics" in caplog.text
    assert "Connection refused" in caplog.text
    assert "second line" not in caplog.text
    with pytest.raises(MlflowException):
        tail.send()
    outage[0] = False
    tail.send()
    assert _points(run) == _losses([1, 2, 3])


def test_a_long_queue_broken_off_midway_is_neither_lost_nor_doubled(
    run: RunRef, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"part{index}" for index in range(8)]
    values = dict.fromkeys(names, 0.5)
    metrics.write_text("".join(_line(step, **values) for step in range(1, 401)))
    tail, sizes, send = MetricTail(run, metrics, "predictor"), [], MlflowClient.log_batch

    def log_batch(client: MlflowClient, run_id: str, metrics: Sequence[Any]) -> None:
        if len(sizes) == 2:
            raise MlflowException("gone")
        sizes.append(len(metrics))
        send(client, run_id, metrics=metrics)

    tail.poll()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch)
        with pytest.raises(MlflowException):
            tail.send()
    _send(MetricTail(run, metrics, "predictor"))  # this process has died; another goes on
    assert max(sizes) <= 1000, "MLflow's limit for one request"
    for name in ("loss", *names):
        points = _points(run, f"predictor/train/{name}")
        assert [step for step, _ in points] == list(range(1, 401)), name


def test_the_home_of_a_run_can_be_read_with_mlflow_alone(run: RunRef, home: Home, tmp_path: Path) -> None:
    shutil.copyfile(home.root / "mlflow.db", tmp_path / "mlflow.db")
    assert MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(run.run_id).info.status == "RUNNING"
