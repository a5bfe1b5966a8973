"""The Prefect server of a single command, where none is configured.

Prefect would start one itself once the first flow runs, and import its whole server into this process to do so.
Here it starts while the flow is imported, on the other core, and writes its log into the home.
"""

from __future__ import annotations

import atexit
import os
import socket

from flows.site.processes import HOST, ServerProcess
from storage.layout import Home

__all__ = ["begin_embedded"]

_ENVIRONMENT = {  # what Prefect tells its own
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def begin_embedded(home: Home) -> ServerProcess | None:
    """Start a server over the home's database and point Prefect to it; None where Prefect has one already.

    It needs seconds until it answers: `wait_until_healthy` before the first flow. It ends with this process, however
    that ends.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():  # in the environment, a profile or a prefect.toml
        return None
    port = _free_port()
    command = [
        "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", HOST, "--port", str(port),
        "--log-level", "error", "--lifespan", "on",
    ]  # fmt: skip
    log = home.root / "logs" / "prefect-embedded.log"
    service = ServerProcess("Prefect's embedded server", command, log, port, "/api", environment=_ENVIRONMENT)
    service.start()
    atexit.register(service.stop)
    os.environ["PREFECT_API_URL"] = service.address
    refresh_global_settings_context()
    return service


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
