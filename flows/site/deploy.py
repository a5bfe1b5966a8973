"""`kronos deploy`: prefect.yaml on a server, with the pool and the automations it needs, as often as you like."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from flows.config import ConfigError
from flows.site.automations import ensure_automation, ensure_webhook, silence, telling
from flows.site.processes import POOL, server_url

__all__ = ["ROOT", "Deployed", "deploy"]

ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployed:
    """One thing that a site needs, and whether it had to be made."""

    what: str
    changed: bool


def deploy(*, notify: str | None = None, paused: bool = False) -> list[Deployed]:
    """Make pool, automations and deployments as prefect.yaml has them; what is so already is left alone.

    `notify` is the webhook that is told of bad runs; without it one that was given before stays. `paused` stops
    every schedule. Raises ConfigError where no server is configured, and where prefect.yaml is not there or has
    parameters that the form of its flow would refuse.
    """
    server_url()
    declared = _declared()
    version = _version(declared)
    with get_client(sync_client=True) as client:
        done = [Deployed(f"work pool {POOL}", _ensure_pool(client))]
        done.append(Deployed("automation that ends silent runs", ensure_automation(client, silence())))
        if notify:
            block, changed = ensure_webhook(notify)
            done.append(Deployed("webhook", changed))
            done.append(
                Deployed("automation that tells of bad runs", ensure_automation(client, telling(block)))
            )
        before = {one.name: one.version for one in client.read_deployments()}
        stale = [one["name"] for one in declared if before.get(one["name"]) != version]
        if stale:
            _prefect_deploy(version)
        done += [Deployed(f"deployment {one['name']}", one["name"] in stale) for one in declared]
        done += _settle_schedules(client, declared, paused=paused)
    return done


def _declared() -> list[dict[str, Any]]:
    """Every deployment in prefect.yaml."""
    path = ROOT / "prefect.yaml"
    if not path.exists():
        raise ConfigError(
            f"Expected prefect.yaml in {ROOT}, found none; install the program from a checkout "
            "(pip install --editable) and deploy from there."
        )
    return list(yaml.safe_load(path.read_text())["deployments"])


def _version(declared: list[dict[str, Any]]) -> str:
    """Twelve digits over prefect.yaml, where it lies, and the parameters of every flow.

    The flows are imported for that: Prefect itself deploys one that cannot be, with a form that knows no types.
    """
    content: list[Any] = [str(ROOT), (ROOT / "prefect.yaml").read_text()]
    for one in declared:
        module, _, name = one["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        form = parameter_schema(flow).model_dump(mode="json")
        _refuse_wrong(one, form)
        content.append(form)
        content.append(flow.description)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _refuse_wrong(declared: dict[str, Any], form: dict[str, Any]) -> None:
    """Prefect itself takes any parameters for a deployment, and its scheduled runs would fail one by one."""
    for wrong in validate(declared.get("parameters", {}), form, ignore_required=True):
        while wrong.context:  # of the choices of a section, null is the one that was not meant
            wrong = max(wrong.context, key=lambda one: len(one.absolute_path))
        where = ".".join(str(part) for part in wrong.absolute_path) or "parameters"
        raise ConfigError(
            f"Expected the parameters of {declared['name']} in {ROOT / 'prefect.yaml'} as its form takes them, found "
            f"{where}: {wrong.message}; correct it, settings stand by section: {{dataset: {{lookback: 80}}}}."
        )


def _ensure_pool(client: SyncPrefectClient) -> bool:
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        return True
    if pool.type != "process":
        raise ConfigError(
            f"Expected a work pool {POOL} of type process, found one of type {pool.type}; delete it or rename it."
        )
    return False


def _settle_schedules(
    client: SyncPrefectClient, declared: list[dict[str, Any]], *, paused: bool
) -> list[Deployed]:
    """Delete schedules that were once declared and are no more, which Prefect leaves active; pause the others if told.

    A schedule without a slug was made in the UI and is left alone.
    """
    slugs = {one["name"]: {each["slug"] for each in one.get("schedules", [])} for one in declared}
    done = []
    for deployment in client.read_deployments():
        for schedule in deployment.schedules if deployment.name in slugs else []:
            if schedule.slug and schedule.slug not in slugs[deployment.name]:
                client.delete_deployment_schedule(deployment.id, schedule.id)
                done.append(
                    Deployed(f"schedule {schedule.slug} of {deployment.name}, no longer declared", True)
                )
            elif paused and schedule.active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
    return done


def _prefect_deploy(version: str) -> None:
    """`prefect deploy` in the root: it writes where it ran as the folder in which runs start."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = {**os.environ, "KRONOS_VERSION": version, "PREFECT_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ConfigError(
            f"Expected prefect.yaml to be deployed, found: {said[-1].strip() if said else 'no message'}; correct "
            f"{ROOT / 'prefect.yaml'}."
        )
    logger.debug("%s", done.stdout)
