"""`kronos up`, `deploy`, `worker`, `ui`, `doctor` and `gc`: a site and its upkeep.

They import what they need when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from flows.cli.options import PORT, SET
from flows.cli.terminal import start
from flows.cli.values import WholeNumber

__all__ = ["deploy", "doctor", "gc", "ui", "up", "worker"]

_NOTIFY = click.option(
    "--notify",
    metavar="URL",
    envvar="KRONOS_NOTIFY_URL",
    help="Webhook that is told the cause of every bad run, as JSON with a text.",
)
_PAUSED = click.option(
    "--no-schedules", "paused", is_flag=True, help="Pause every schedule; runs start by hand alone."
)


def _port(name: str, default: int, what: str) -> Callable[[Any], Any]:
    span = WholeNumber(1, 65_535)
    return click.option(
        f"--{name}-port", type=span, default=default, show_default=True, help=f"Port of {what}."
    )


@click.command()
@click.option("--repair", is_flag=True, help="Move MLflow's alias and the Hub's tag back to who serves.")
@click.pass_obj
def doctor(obj: dict[str, Any], repair: bool) -> None:
    """Say what is configured, reachable and missing."""
    home = start(obj, reads=not repair)
    from flows.cli.site_screen import show_findings
    from flows.site.doctor import examine
    from flows.site.doctor import repair as mend

    if repair:
        mend(home)
    findings = examine(home)
    show_findings(findings)
    if any(finding.state == "bad" for finding in findings):
        sys.exit(1)


@click.command()
@click.option(
    "--yes", "delete", is_flag=True, help="Delete. Without it the command only shows what would go."
)
@SET
@click.pass_obj
def gc(obj: dict[str, Any], delete: bool, assignments: tuple[str, ...]) -> None:
    """Forget old checkpoints, tokens, jobs, datasets, models, forecasts and pictures.

    What the champions and the predecessors on their records need stays, and so does every candle. `kronos gc --set
    job_days=7` keeps finished jobs for a week; a wrong name lists the others.
    """
    from flows.cli.site_screen import show_expired
    from flows.config import override, parse_assignments
    from storage.retention import RetentionPolicy, expired

    settings = parse_assignments(assignments)
    policy = override(RetentionPolicy(), settings)  # a typing mistake is told before anything starts
    home = start(obj, reads=not delete)
    if not delete:
        show_expired(expired(home, policy), home, deleted=False)
        return
    from flows.gc import gc as flow

    found: Any = flow(delete=True, settings=settings or None)
    show_expired(found, home, deleted=True)


@click.command()
@_NOTIFY
@_PAUSED
@_port("prefect", 4200, "Prefect's UI and API")
@_port("mlflow", 5000, "MLflow's UI and API")
@_port("service", 8765, "the forecast service")
@click.pass_obj
def up(obj: dict[str, Any], /, **options: Any) -> None:
    """Run everything on this machine until Ctrl-C: Prefect, MLflow, the forecast service and a worker.

    A server that is configured elsewhere (PREFECT_API_URL, MLFLOW_TRACKING_URI) is used instead of starting one.
    """
    home = start(obj)
    from flows.cli.screen import lines
    from flows.cli.site_screen import show_deployed, show_ready
    from flows.site.up import up as run_everything

    run_everything(home, ready=show_ready, deployed=show_deployed, **options)
    lines().print("Stopped; `kronos up` goes on where it was.", highlight=False)


@click.command()
@_NOTIFY
@_PAUSED
@click.pass_obj
def deploy(obj: dict[str, Any], notify: str | None, paused: bool) -> None:
    """Bring pool, automations and deployments on the Prefect server up to date with prefect.yaml."""
    start(obj)
    from flows.cli.site_screen import show_deployed
    from flows.site.deploy import deploy as bring_up_to_date

    show_deployed(bring_up_to_date(notify=notify, paused=paused))


@click.command()
@click.pass_obj
def worker(obj: dict[str, Any]) -> None:
    """Run what is due on this machine until Ctrl-C or SIGTERM, which first ends the runs under way in order."""
    home = start(obj)
    from flows.cli.screen import lines
    from flows.cli.site_screen import show_ready
    from flows.site.processes import server_url
    from flows.site.up import work

    lines().print(f"Prefect  {server_url()}", highlight=False)
    work(home, ready=show_ready)
    lines().print("Stopped; its runs have ended in order.", highlight=False)


@click.command()
@click.argument("which", metavar="UI", type=click.Choice(["prefect", "mlflow"]))
@click.option("--port", type=PORT, help="Port on 127.0.0.1 [prefect 4200, mlflow 5000].")
@click.pass_obj
def ui(obj: dict[str, Any], which: str, port: int | None) -> None:
    """Open the UI of `prefect` or `mlflow` over this home, until Ctrl-C."""
    home = start(obj)
    from flows.site.ui import serve_ui

    serve_ui(which, home, port)
