"""A night whose Prefect and MLflow both keep what they know in a real PostgreSQL: of one command, and of a site."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.support.nights import quick_settings, write_klines
from tests.support.postgres import Postgres, postgres
from tests.support.prefect_site import Site, prefect_site
from tests.support.terminal import finish, start
from tests.support.webhook import webhook

pytestmark = pytest.mark.timeout(900)

COMPLETED = "SELECT state_type, count(*) FROM flow_run WHERE state_type <> 'SCHEDULED' GROUP BY 1"
RUNS = "SELECT status, count(*) FROM runs GROUP BY 1"


@dataclass(frozen=True)
class Served:
    """A site after one night, and what its processes were started with."""

    site: Site
    server: Postgres
    night: dict[str, Any]
    command_lines: list[str]


def _exported(server: Postgres) -> dict[str, str]:
    """What points Prefect and MLflow to a fresh database each."""
    for database in ("prefect", "mlflow"):
        server.create(database)
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": server.url("asyncpg", "prefect"),
        "MLFLOW_TRACKING_URI": server.url("psycopg", "mlflow"),
    }


def test_a_night_of_one_command_is_kept_in_both_databases_and_tells_no_password(tmp_path: Path) -> None:
    write_klines(tmp_path / "klines")
    settings = quick_settings(tmp_path / "klines")
    options = [f"--set={name}={value}" for name, value in settings.items()]
    with postgres() as server:
        outcome = finish(start(tmp_path / "home", "run", *options, **_exported(server)), within_s=800)
        assert outcome.code == 0, outcome.err
        assert server.query("prefect", COMPLETED) == ["COMPLETED|1"]
        assert server.query("mlflow", RUNS) == ["FINISHED|1"]
        assert "predictor/train/loss" in server.query("mlflow", "SELECT DISTINCT key FROM metrics")
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".db"] == []
    assert server.password not in outcome.out + outcome.err
    assert [path for path in files if server.password.encode() in path.read_bytes()] == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("site")
    write_klines(folder / "klines")
    form = {"recipe": "demo", "series": None, "interval": None, "start": None, "end": None}
    with ExitStack() as stack:
        server, hook = stack.enter_context(postgres()), stack.enter_context(webhook())
        site = stack.enter_context(prefect_site(folder, notify=hook.url, exported=_exported(server)))
        run = site.run("nightly", {**form, "settings": quick_settings(folder / "klines")})
        lines = _command_lines(site, until=time.monotonic() + 5)
        (night,) = site.finished(run, within_s=400)
        yield Served(site, server, night, lines)


def _command_lines(site: Site, *, until: float) -> list[str]:
    """Of every process of the site there was in the meantime."""
    seen: set[str] = set()
    while time.monotonic() < until:
        for process in site._descendants():
            try:
                seen.add(" ".join(process.cmdline()))
            except psutil.Error:  # it has just ended
                continue
        time.sleep(0.5)
    return sorted(seen)


@pytest.mark.slow
def test_the_night_ends_well_and_both_know_it(served: Served) -> None:
    assert served.night["state_type"] == "COMPLETED", served.site.log_of(served.night["id"])[-1]
    assert served.server.query("prefect", COMPLETED) == ["COMPLETED|1"]
    assert served.server.query("mlflow", RUNS) == ["FINISHED|1"]


@pytest.mark.slow
def test_the_mlflow_server_has_the_night_its_files_and_its_champion(served: Served) -> None:
    client = MlflowClient(served.site.mlflow)
    experiment = client.get_experiment_by_name("kronos-demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["prefect.flow_run_id"] == served.night["id"]
    assert client.get_metric_history(run.info.run_id, "predictor/train/loss")
    assert client.list_artifacts(run.info.run_id)
    assert any(path.is_file() for path in served.site.home.mlartifacts.rglob("*"))
    champion = client.get_model_version_by_alias("kronos-demo", "champion")
    assert champion.run_id == run.info.run_id


@pytest.mark.slow
def test_nothing_is_kept_in_sqlite(served: Served) -> None:
    assert list(served.site.home.root.rglob("*.db")) == []


@pytest.mark.slow
def test_the_password_is_in_no_command_line_and_in_no_log(served: Served) -> None:
    assert any("mlflow" in line for line in served.command_lines)
    assert [line for line in served.command_lines if served.server.password in line] == []
    logs = [*served.site.folder.glob("*.log"), *served.site.home.root.glob("logs/*.log")]
    assert len(logs) >= 4
    assert [path.name for path in logs if served.server.password in path.read_text(errors="replace")] == []
    told = [line["message"] for line in served.site.log_of(served.night["id"])]
    assert [message for message in told if served.server.password in message] == []
