"""A night on a site whose Prefect and MLflow both keep what they know in a real PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.support.nights import quick_settings, write_klines
from tests.support.postgres import Postgres, postgres
from tests.support.prefect_site import Site, prefect_site
from tests.support.webhook import webhook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Served:
    """A site after one night, and what its processes were started with."""

    site: Site
    server: Postgres
    night: dict[str, Any]
    command_lines: list[str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("site")
    write_klines(folder / "klines")
    form = {"recipe": "demo", "series": None, "interval": None, "start": None, "end": None}
    with postgres() as server:
        for database in ("prefect", "mlflow"):
            server.create(database)
        exported = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": server.url("asyncpg", "prefect"),
            "MLFLOW_TRACKING_URI": server.url("psycopg", "mlflow"),
        }
        with webhook() as hook, prefect_site(folder, notify=hook.url, exported=exported) as site:
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


def test_the_night_ends_well_and_both_know_it(served: Served) -> None:
    assert served.night["state_type"] == "COMPLETED", served.site.log_of(served.night["id"])[-1]
    states = "SELECT state_type, count(*) FROM flow_run WHERE state_type <> 'SCHEDULED' GROUP BY 1"
    assert served.server.query("prefect", states) == ["COMPLETED|1"]
    assert served.server.query("mlflow", "SELECT status, count(*) FROM runs GROUP BY 1") == ["FINISHED|1"]


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


def test_nothing_is_kept_in_sqlite(served: Served) -> None:
    assert list(served.site.home.root.rglob("*.db")) == []


def test_the_password_is_in_no_command_line_and_in_no_log(served: Served) -> None:
    assert any("mlflow" in line for line in served.command_lines)
    assert [line for line in served.command_lines if served.server.password in line] == []
    logs = [*served.site.folder.glob("*.log"), *served.site.home.root.glob("logs/*.log")]
    assert len(logs) >= 4
    assert [path.name for path in logs if served.server.password in path.read_text(errors="replace")] == []
    told = [line["message"] for line in served.site.log_of(served.night["id"])]
    assert [message for message in told if served.server.password in message] == []
