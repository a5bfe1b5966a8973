"""The Prefect and MLflow servers over a home, for looking."""

from __future__ import annotations

import os
import sys

from flows.config import ConfigError
from flows.site.processes import mlflow_service, prefect_service
from storage.layout import Home
from tasks.database import without_login
from tasks.tracking.store import prepare_store, tracking_uri

__all__ = ["serve_ui"]


def serve_ui(which: str, home: Home, port: int | None) -> None:
    """Replace this process by the server, on 127.0.0.1; Ctrl-C stops it.

    Raises ConfigError where a server of MLflow is configured, which has a UI already.
    """
    if which == "prefect":
        server = prefect_service(home, port or 4200)
        # Its pages would ask PREFECT_API_URL, or port 4200, whatever port they came from.
        os.environ["PREFECT_UI_API_URL"] = server.address
    else:
        if (address := tracking_uri(home)).startswith("http"):
            raise ConfigError(
                f"Expected a store to open a UI over, found that MLFLOW_TRACKING_URI names a server; open "
                f"{without_login(address)} in a browser, or unset the variable to look into this home."
            )
        server = mlflow_service(home, port or 5000, prepare_store(home))
    os.environ.update(server.environment)
    os.execv(sys.executable, [sys.executable, "-m", *server.command])
