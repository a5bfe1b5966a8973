"""A whole site on one machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from flows.site.processes import (
    POOL,
    ServerProcess,
    forecast_service,
    mlflow_service,
    prefect_service,
    refuse_taken,
    run_site,
    server_url,
    worker_service,
)
from storage.layout import Home
from tasks.tracking import prepare_store, tracking_uri

if TYPE_CHECKING:  # at run time it imports Prefect, which reads PREFECT_API_URL then
    from flows.site.deploy import Deployed

__all__ = ["show_deployed", "up", "work"]


def up(
    home: Home, *, prefect_port: int, mlflow_port: int, service_port: int, notify: str | None, paused: bool
) -> None:
    """Servers, unless configured elsewhere, the forecast service, the deployments and a worker, until stopped."""
    console, servers = _console(), []
    if not os.environ.get("PREFECT_API_URL"):
        servers.append(prefect_service(home, prefect_port))
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        servers.append(mlflow_service(home, mlflow_port, tracking_uri(home)))
    servers.append(forecast_service(home, service_port))
    refuse_taken(servers)
    prepare_store(home)
    os.environ.update({one.variable: one.address for one in servers if one.variable})
    run_site(
        [*servers, worker_service(home, POOL)],
        ready=lambda service: _tell(console, service),
        between=lambda: _deploy(notify=notify, paused=paused),
    )
    console.print("Stopped; `kronos up` goes on where it was.")


def work(home: Home) -> None:
    """A worker alone, for a server that is somewhere else."""
    console = _console()
    console.print(f"Prefect  {server_url()}")
    run_site([worker_service(home, POOL)], ready=lambda service: _tell(console, service))
    console.print("Stopped; its runs have ended in order.")


def show_deployed(done: Sequence[Deployed]) -> None:
    """What a deployment changed, and what was so already."""
    for one in done:
        _console().print(f"{'deployed ' if one.changed else 'unchanged'}  {one.what}")


def _deploy(*, notify: str | None, paused: bool) -> None:
    from flows.site.deploy import deploy  # Prefect reads PREFECT_API_URL when it is imported

    show_deployed(deploy(notify=notify, paused=paused))


def _tell(console: Console, service: ServerProcess) -> None:
    told = service.url or f"runs what is due in {POOL}; Ctrl-C stops everything that was started here"
    console.print(f"{service.name:<9}  {told}")


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
