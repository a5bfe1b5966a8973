"""The `kronos` command as a user types it, in this process or in one of its own, and what it must leave alone."""

import hashlib
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows.cli.program import main
from flows.environment import PACKAGES

__all__ = ["Outcome", "Terminal", "closed_url", "finish", "holdings", "start"]

ROOT = Path(__file__).resolve().parents[2]
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d  \S")
_FOREIGN = ("PREFECT_", "MLFLOW_", "KRONOS_", "HF_")
_KEPT = ("lake", "datasets", "models", "hub", "forecasts")


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The sentence of a refusal: the last line of stderr, after nothing but log lines."""
        assert self.code != 0
        assert "Traceback" not in self.out + self.err
        assert self.err, self.out
        *before, last = self.err.splitlines()
        assert [line for line in before if not _LOG_LINE.match(line)] == []
        assert last.startswith("error: ")
        return last


class Terminal:
    """`kronos` in this process, as flows.cli.program.main runs it, over one home."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capsys.readouterr()
        argv = ["kronos", "--home", str(self.home), *map(str, arguments)]
        code: int | str | None = 0
        with _as_found(), mock.patch.object(sys, "argv", argv):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
        assert isinstance(code, int)
        out, err = self._capsys.readouterr()
        return Outcome(code, out, err)

    def refused(self, *arguments: str | Path) -> str:
        """The one sentence of a command that must fail and change nothing worth keeping."""
        before = holdings(self.home)
        outcome = self(*arguments)
        assert holdings(self.home) == before
        return outcome.complaint()


def start(home: Path, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    """`kronos` as a process of its own, with nothing of this process's Prefect, MLflow or Hub settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--home", str(home), *map(str, arguments)],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", *, within_s: float = 240) -> Outcome:
    """Its outcome, once it has ended."""
    try:
        out, err = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def holdings(home: Path) -> dict[str, str]:
    """Digests of all candles, datasets, models and forecasts of a home, and the status of every MLflow run."""
    files = [path for name in _KEPT for path in (home / name).rglob("*") if path.is_file()]
    kept = {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(home).parts)  # locks, the weight budget
    }
    return kept | _runs(home / "mlflow.db")


def closed_url() -> str:
    """An address on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _runs(database: Path) -> dict[str, str]:
    if not database.exists() or database.stat().st_size == 0:
        return {}
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT run_uuid, status FROM runs").fetchall())
    except sqlite3.DatabaseError:  # a test has damaged it
        return {}
    finally:
        connection.close()


@contextmanager
def _as_found() -> Iterator[None]:
    """Undo what the program does to its process, and mute Prefect's console as `prepare_environment` would."""
    environment, on_term = dict(os.environ), signal.getsignal(signal.SIGTERM)
    ours = [logging.getLogger(name) for name in PACKAGES]
    levels, handlers = [one.level for one in ours], [list(one.handlers) for one in ours]
    consoles = [(handler, handler.level) for handler in _consoles()]
    for handler, _ in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, on_term)
        os.environ.clear()
        os.environ.update(environment)
        for handler, level in consoles:
            handler.setLevel(level)
        for logger, level, before in zip(ours, levels, handlers, strict=True):
            logger.setLevel(level)
            logger.handlers[:] = before


def _consoles() -> list[logging.Handler]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = [handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers]
    return [handler for handler in dict.fromkeys(found) if isinstance(handler, PrefectConsoleHandler)]
