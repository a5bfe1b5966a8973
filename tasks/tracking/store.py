"""Where MLflow keeps what it is told, made ready and opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from storage.atomic import atomic_path
from storage.layout import Home
from tasks.database import is_database, one_at_a_time

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["open_client", "prepare_store", "tolerant", "tracking_uri"]

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"


def tracking_uri(home: Home) -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or home.mlflow_uri


def prepare_store(home: Home) -> str:
    """The tracking URI; a database is made ready where it is new and brought up to date where it is old.

    Two processes that open a new SQLite at once break its migrations for good, and so does a kill in their midst. So
    one at a time, and on a draft that takes its name when it is whole. PostgreSQL migrates whole or not at all; of
    two that begin a new one at once the second fails, so there too one at a time.
    """
    uri = tracking_uri(home)
    if not uri.startswith(_SQLITE):
        if is_database(uri):
            with one_at_a_time(uri):
                open_client(uri).search_experiments(max_results=1)
        return uri
    path = Path(uri.removeprefix(_SQLITE))
    with FileLock(home.root / "mlflow.lock"):
        if not path.exists():
            for leftover in path.parent.glob(f".{path.stem}.*.tmp*"):  # of a killed process
                leftover.unlink()
            with atomic_path(path) as draft:
                open_client(f"{_SQLITE}{draft}").search_experiments(max_results=1)
        open_client(uri).search_experiments(max_results=1)
    return uri


@contextmanager
def tolerant(what: str) -> Iterator[None]:
    """A tracking outage must not end a training that runs: warn, and let the caller send the rest later."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logger.warning(
            "MLflow did not take %s (%s); it will be sent again.", what, str(error).splitlines()[0]
        )


def open_client(uri: str) -> MlflowClient:
    """A client of that store or server."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
