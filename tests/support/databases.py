"""The databases of Prefect and MLflow as they are when first opened, lent to new homes: making one takes seconds.

Each is made once by the library itself and kept in pytest's cache under its version. Who opens a copy brings it up to
date, so a kept one is never more than a start.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from storage.layout import Home

__all__ = ["lend_mlflow", "lend_prefect"]

ROOT = Path(__file__).parents[2]
_KEPT = ROOT / ".pytest_cache" / "databases"
_OPEN_MLFLOW = (
    "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments(max_results=1)"
)


def lend_prefect(path: Path) -> None:
    """A migrated database without a run at `path`."""
    _lend("prefect", ["-m", "prefect", "server", "database", "upgrade", "--yes"], path)


def lend_mlflow(home: Home) -> None:
    """A store without a run in the home."""
    _lend("mlflow", ["-c", _OPEN_MLFLOW, "sqlite:///{folder}/mlflow.db"], home.root / "mlflow.db")


def _lend(library: str, command: list[str], path: Path) -> None:
    kept = _KEPT / f"{library}-{version(library)}.db"
    _KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(_KEPT / f"{library}.lock"):
        if not kept.exists():
            _make(library, command, kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, path)


def _make(library: str, command: list[str], kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_KEPT) as folder:
        here = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db"}
        done = subprocess.run(
            [sys.executable, *(part.format(folder=folder) for part in command)],
            cwd=ROOT, env={**os.environ, **here, "PREFECT_HOME": folder}, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        made, whole = Path(folder, f"{library}.db"), Path(folder, "whole")
        with closing(sqlite3.connect(made)) as database:
            database.execute("VACUUM INTO ?", (str(whole),))  # what is in a write-ahead log, too
        whole.rename(kept)
