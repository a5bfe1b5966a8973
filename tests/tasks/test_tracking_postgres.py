"""MLflow runs in a real PostgreSQL, without a server between; skipped where PostgreSQL is not installed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from storage.layout import Home
from tasks.tracking.runs import begin_run, end_dead_runs, end_run, log_text
from tasks.tracking.tail import MetricTail
from tests.support.postgres import Postgres, postgres

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import sys
from storage.layout import Home
from tasks.tracking.runs import begin_run
import mlflow.store.tracking.sqlalchemy_store
print("ready", flush=True)
sys.stdin.readline()
begin_run(Home.at(sys.argv[1]), experiment="demo", name="night", identity=sys.argv[2], params={"seed": 0}, tags={})
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture
def address(database: Postgres, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh database of this test's own, in MLFLOW_TRACKING_URI."""
    name = f"mlflow_{abs(hash(request.node.name)) % 10**9}"
    database.create(name)
    uri = database.url("psycopg", name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_two_processes_may_open_a_new_database_at_once(tmp_path: Path, address: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(tmp_path / identity), identity],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for identity in ("first", "second")
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    client = MlflowClient(address)
    (experiment,) = [one for one in client.search_experiments() if one.name == "demo"]
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_run_is_resumed_and_closed_and_its_files_lie_in_the_home(tmp_path: Path, address: str) -> None:
    home, metrics = Home.at(tmp_path / "home"), tmp_path / "metrics.jsonl"
    known = {"experiment": "kronos-demo", "name": "night", "identity": "one", "params": {}, "tags": {}}
    run = begin_run(home, **known)
    assert begin_run(home, **known) == run
    metrics.write_text('{"step": 1, "epoch": 0, "phase": "train", "loss": 2.5}\n')
    tail = MetricTail(run, metrics, "predictor")
    tail.poll()
    tail.send()
    log_text(run, "hello", "greeting.txt")
    client = MlflowClient(address)
    (point,) = client.get_metric_history(run.run_id, "predictor/train/loss")
    assert (point.step, point.value) == (1, 2.5)
    (written,) = home.mlartifacts.rglob("greeting.txt")
    assert written.read_text() == "hello"
    end_dead_runs(home)
    assert client.get_run(run.run_id).info.status == "KILLED"
    end_run(run, "FINISHED")
    assert client.get_run(run.run_id).info.status == "FINISHED"
