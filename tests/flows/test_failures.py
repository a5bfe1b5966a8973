"""What a lost server is called, in one short sentence without a password."""

import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.config import ConfigError
from flows.failures import explain
from flows.site.ui import serve_ui
from storage.layout import Home
from tests.support.terminal import closed_url


def _mlflow_at(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(MlflowException) as lost:
        MlflowClient(address).search_experiments()
    return str(explain(lost.value))


def test_a_server_that_is_down_is_named_without_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_url()
    assert _mlflow_at(url.replace("://", "://me:secret@"), monkeypatch) == (
        f"Expected MLflow to answer, found that {url} refused the connection; check MLFLOW_TRACKING_URI, or start "
        "its server."
    )


def test_a_server_that_is_silent_did_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert f"found that {url} did not answer in time;" in _mlflow_at(url, monkeypatch)


def test_a_server_in_trouble_is_told_by_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Troubled(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Troubled)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    sentence = _mlflow_at(url, monkeypatch)
    server.shutdown()
    server.server_close()
    assert f"found that {url} answers nothing but HTTP 503;" in sentence


def test_a_prefect_server_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_url()
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    with pytest.raises(httpx.ConnectError) as lost:
        httpx.get(url, trust_env=False)
    assert f"found that {url}/api refused the connection; check PREFECT_API_URL" in str(explain(lost.value))


def test_what_is_too_long_is_cut_at_a_word() -> None:
    said = str(explain(MlflowException("word " * 100)))
    assert len(said) < 300
    assert "word word …; check MLFLOW_TRACKING_URI" in said
    secret = str(explain(MlflowException("no http://me:secret@server.example today")))
    assert "found no http://me:***@server.example today;" in secret


def test_a_ui_over_a_server_that_has_one_is_refused_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server.example/mlflow")
    with pytest.raises(ConfigError, match=r"open https://server\.example/mlflow in a browser"):
        serve_ui("mlflow", Home.at(tmp_path), None)


def test_the_pages_of_prefect_ask_the_server_they_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    monkeypatch.setenv("PREFECT_UI_API_URL", "")
    serve_ui("prefect", Home.at(tmp_path), 4321)
    assert started[0][-2:] == ["--port", "4321"]
    assert os.environ["PREFECT_UI_API_URL"] == "http://127.0.0.1:4321/api"
