"""Runs of MLflow: begun or resumed by identity, told things, and closed."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from storage.interval import wall_clock_ms
from storage.layout import Home
from tasks.database import is_database, without_login
from tasks.refs import RunRef
from tasks.tracking.store import open_client, prepare_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "begin_run",
    "describe_run",
    "end_dead_runs",
    "end_run",
    "log_artifact",
    "log_dataset",
    "log_metrics",
    "log_table",
    "log_text",
    "system_metrics",
]

logger = logging.getLogger(__name__)

_IDENTITY = "kronos.identity"
_HOME = "kronos.home"
_PREFECT_URL = "prefect.flow_run_url"
_SYSTEM_EVERY_S = 10
_PARAM_LIMIT = 6000  # MLflow truncates longer values silently


def begin_run(
    home: Home,
    *,
    experiment: str,
    name: str,
    identity: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> RunRef:
    """Start the run of this identity, or resume it when it exists."""
    from mlflow.entities import Param

    uri = prepare_store(home)
    client = open_client(uri)
    experiment_id = _experiment(client, experiment, home, uri)
    found = client.search_runs([experiment_id], f"tags.`{_IDENTITY}` = '{identity}'", max_results=1)
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        run = client.create_run(
            experiment_id, run_name=name, tags={_IDENTITY: identity, "mlflow.source.name": "kronos", **tags}
        )
        told = [Param(k, str(v)[:_PARAM_LIMIT]) for k, v in params.items()]
        client.log_batch(run.info.run_id, params=told)
    for key, value in {**tags, _HOME: _here(home)}.items():
        client.set_tag(run.info.run_id, key, value)
    page = f"{without_login(uri)}/#/experiments/{experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    url = page if uri.startswith("http") else ""
    return RunRef(run_id=run.info.run_id, experiment_id=experiment_id, uri=uri, url=url)


def end_run(
    run: RunRef, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str] | None = None
) -> None:
    """Close the run with a status and last tags."""
    client = open_client(run.uri)
    for key, value in (tags or {}).items():
        client.set_tag(run.run_id, key, value)
    client.set_terminated(run.run_id, status)


def end_dead_runs(home: Home) -> None:
    """Close as KILLED what processes of this home left running; only for who holds the home."""
    uri = prepare_store(home)
    client = open_client(uri)
    experiments = [
        one.experiment_id for one in client.search_experiments(filter_string="name LIKE 'kronos-%'")
    ]
    if not experiments:
        return
    ours = f"attributes.status = 'RUNNING' and tags.`{_HOME}` = '{_here(home)}'"
    for run in client.search_runs(experiments, ours):
        client.set_terminated(run.info.run_id, "KILLED")
        logger.warning(
            "MLflow run %s was left running by a process that is gone; it is KILLED.", run.info.run_id
        )


def log_metrics(run: RunRef, values: Mapping[str, float], step: int = 0) -> None:
    """Record numbers at a step."""
    from mlflow.entities import Metric

    now = wall_clock_ms()
    metrics = [Metric(k, float(v), now, step) for k, v in values.items()]
    open_client(run.uri).log_batch(run.run_id, metrics=metrics)


def log_artifact(run: RunRef, path: str | Path, folder: str | None = None) -> None:
    """Copy a file or a folder into the run."""
    client, path = open_client(run.uri), Path(path)
    if path.is_dir():
        client.log_artifacts(run.run_id, str(path), folder or path.name)
    else:
        client.log_artifact(run.run_id, str(path), folder)


def describe_run(run: RunRef, text: str) -> None:
    """The run's description, markdown, shown at its top."""
    client = open_client(run.uri)
    link = client.get_run(run.run_id).data.tags.get(_PREFECT_URL)
    client.set_tag(run.run_id, "mlflow.note.content", f"[Prefect run]({link})\n\n{text}" if link else text)


def log_text(run: RunRef, text: str, name: str) -> None:
    """Record a text file."""
    open_client(run.uri).log_text(run.run_id, text, name)


def log_table(run: RunRef, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Record rows as a table MLflow's UI can show; a second time replaces it."""
    columns = list(rows[0]) if rows else []
    table = {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}
    client = open_client(run.uri)
    client.log_text(run.run_id, json.dumps(table), name)
    client.set_tag(run.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))


def log_dataset(run: RunRef, *, path: str, digest: str, name: str) -> None:
    """Record the dataset a run was trained on, without loading it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": path})
    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)  # 36: MLflow's limit
    tags = [InputTag("mlflow.data.context", "training")]
    open_client(run.uri).log_inputs(run.run_id, [DatasetInput(dataset, tags)])


@contextmanager
def system_metrics(run: RunRef) -> Iterator[None]:
    """Record processors, memory, disk, network and, with nvidia-ml-py, GPUs every 10 s while the block lasts."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    untyped: Any = SystemMetricsMonitor
    monitor = untyped(
        run.run_id, sampling_interval=_SYSTEM_EVERY_S, resume_logging=True, tracking_uri=run.uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _experiment(client: MlflowClient, name: str, home: Home, uri: str) -> str:
    """The experiment of that name: made where there is none, brought back where it was deleted."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        location = (home.mlartifacts / name).as_uri() if is_database(uri) else None  # else the server decides
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            known = client.get_experiment_by_name(name)  # another process may have been faster
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def _here(home: Home) -> str:
    """A home among those that share an MLflow server."""
    return f"{socket.gethostname()}:{home.root}"
