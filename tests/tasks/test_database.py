"""A password in the address of a database: where it may not be seen."""

import os
from pathlib import Path

import pytest

from flows.site import doctor, ui
from flows.site.processes import mlflow_service
from storage.errors import StorageError
from storage.layout import Home
from tasks.database import is_database, one_at_a_time, shown, without_login
from tasks.refs import RunRef
from tasks.reports import prefect_artifacts as report

ADDRESS = "postgresql+psycopg://kronos:se/cr:et@db.example:5432/mlflow"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (ADDRESS, "postgresql+psycopg://kronos:***@db.example:5432/mlflow"),
        ("postgresql://kronos@db.example/mlflow", "postgresql://kronos@db.example/mlflow"),
        ("postgresql:///mlflow?host=/run&password=secret&user=me", "postgresql:///mlflow?host=/run&password=***&user=me"),
        ("sqlite:////srv/kronos/mlflow.db", "sqlite:////srv/kronos/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@server.example/mlflow", "https://me:***@server.example/mlflow"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_password(address: str, expected: str) -> None:
    assert shown(address) == expected


def test_a_link_asks_for_its_login() -> None:
    assert without_login("https://me:secret@server.example/mlflow") == "https://server.example/mlflow"
    assert without_login("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_a_database_is_told_from_a_server() -> None:
    assert is_database(ADDRESS)
    assert is_database("sqlite:////srv/mlflow.db")
    assert not is_database("http://127.0.0.1:5000")


def test_a_driver_that_is_missing_is_named_and_the_password_is_not() -> None:
    opened = one_at_a_time("postgresql+pg8000://kronos:secret@db.example/mlflow")
    with pytest.raises(StorageError, match="install the extra `postgres`") as refused, opened:
        pass
    assert "pg8000" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_neither_command_line_of_an_mlflow_server_has_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = mlflow_service(Home.at(tmp_path), 5000, ADDRESS)
    assert service.environment == {"MLFLOW_BACKEND_STORE_URI": ADDRESS}
    executed: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setattr(ui, "prepare_store", lambda home: ADDRESS)
    monkeypatch.setattr(os, "execv", lambda program, command: executed.append(command))
    ui.serve_ui("mlflow", Home.at(tmp_path), 5001)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == ADDRESS
    (command,) = executed
    for line in (service.command, command):
        assert "--artifacts-destination" in line
        assert "se/cr:et" not in " ".join(line)


def test_the_doctor_and_the_artifact_of_a_run_without_a_link_do_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    monkeypatch.setattr(doctor, "_exchange", lambda home: [])
    (found,) = [one.found for one in doctor.examine(Home.at(tmp_path)) if one.what == "MLflow"]
    assert found == f"embedded, {shown(ADDRESS)}"
    told: list[str] = []
    monkeypatch.setattr(report, "create_markdown_artifact", lambda text, **_: told.append(text))
    report.show_run(RunRef(run_id="r", experiment_id="1", uri=ADDRESS, url=""))
    assert told == [f"Run `r` in `{shown(ADDRESS)}`; `kronos ui mlflow` shows it on this machine."]
