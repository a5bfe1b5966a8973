"""The edge of the program: where its home is, and what the libraries beneath it are told through the environment.

Everything is a default: a variable that is already set wins, so the same program moves to servers without
another code path (PREFECT_API_URL, MLFLOW_TRACKING_URI, HF_ENDPOINT, HF_TOKEN).
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from storage.layout import Home
from storage.object_home import local_root, refresh

__all__ = ["DEFAULTS", "PACKAGES", "log_to_stderr", "open_home", "prepare_environment"]

PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")

DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is too short on a busy two-core machine
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(PACKAGES),
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # a line from outside a run is no reason for a warning
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default of 7 with backoff 2 can hold a night for minutes
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 10 processes and 2.7 GB without it
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def prepare_environment(home: Home, *, verbose: bool) -> None:
    """Set the defaults above and point the embedded Prefect and MLflow into `home`.

    Call it before anything imports prefect or mlflow: both read the environment on import.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(home.prefect))
    if not verbose:  # our own log lines are enough for a terminal; the Prefect UI still gets everything
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ["KRONOS_HOME"] = str(home.root)


def open_home(path: str | Path | None = None, *, reads: bool = False) -> Home:
    """The home at `path`, or at KRONOS_HOME, or `./.kronos`; created when missing, pulled when on object storage.

    One that is only read is left as it is. Every flow opens one, so from here on the packages' INFO lines are heard,
    also where a worker started the run.
    Raises StorageError for what is no place, and when it cannot be created or written.
    """
    for (
        name
    ) in PACKAGES:  # Prefect attaches its handler to the extra loggers and leaves their level at WARNING
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.INFO)
    told = os.environ.get("KRONOS_HOME", ".kronos") if path is None else path
    home = Home.at(local_root(str(told)), reads=reads)
    refresh(home.root)
    return home


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what is stderr now: a progress view stands in for it while it is shown."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        """There is no other."""


def log_to_stderr() -> None:
    """The packages' INFO lines on the terminal, or wherever stderr goes."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
