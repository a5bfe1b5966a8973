"""A whole site on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flows.site.processes import (
    POOL,
    ServerProcess,
    forecast_service,
    mlflow_service,
    prefect_service,
    refuse_taken,
    run_site,
    worker_service,
)
from storage.layout import Home
from tasks.tracking.store import prepare_store, tracking_uri

if TYPE_CHECKING:  # at run time it imports Prefect, which reads PREFECT_API_URL then
    from flows.site.deploy import Deployed

__all__ = ["up", "work"]

Ready = Callable[[ServerProcess], object]


def up(
    home: Home,
    *,
    prefect_port: int,
    mlflow_port: int,
    service_port: int,
    notify: str | None,
    paused: bool,
    ready: Ready,
    deployed: Callable[[Sequence[Deployed]], object],
) -> None:
    """Servers, unless configured elsewhere, the forecast service, the deployments and a worker, until stopped.

    `ready` is told each process that answers, `deployed` what the deployment did.
    """
    servers = []
    if not os.environ.get("PREFECT_API_URL"):
        servers.append(prefect_service(home, prefect_port))
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        servers.append(mlflow_service(home, mlflow_port, tracking_uri(home)))
    servers.append(forecast_service(home, service_port))
    refuse_taken(servers)
    prepare_store(home)
    os.environ.update({one.variable: one.address for one in servers if one.variable})

    def bring_up_to_date() -> None:
        from flows.site.deploy import deploy  # Prefect reads PREFECT_API_URL when it is imported

        deployed(deploy(notify=notify, paused=paused))

    run_site([*servers, worker_service(home, POOL)], ready=ready, between=bring_up_to_date)


def work(home: Home, *, ready: Ready) -> None:
    """A worker alone, for a server that is somewhere else."""
    run_site([worker_service(home, POOL)], ready=ready)
