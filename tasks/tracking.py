"""MLflow: the only module that imports it, but for tasks/pyfunc_model.py, which MLflow runs where a model is served.

A run is found again by its identity tag, so a resumed night continues its run instead of starting a second one.
All calls go through MlflowClient: MLflow's "active run" is thread-local and would not be seen by other threads.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from storage.atomic import atomic_path
from storage.layout import Home
from tasks.database import is_database, one_at_a_time, without_login
from tasks.refs import RunRef

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

__all__ = [
    "MetricTail",
    "RegisteredVersion",
    "alias_version",
    "begin_run",
    "describe_run",
    "end_dead_runs",
    "end_run",
    "log_artifact",
    "log_dataset",
    "log_metrics",
    "log_table",
    "log_text",
    "move_alias",
    "prepare_store",
    "register_model",
    "registered_name",
    "registered_versions",
    "system_metrics",
    "tolerant",
    "tracking_uri",
]

logger = logging.getLogger(__name__)

_IDENTITY = "kronos.identity"
_HOME = "kronos.home"
_PREFECT_URL = "prefect.flow_run_url"
_SYSTEM_EVERY_S = 10
_SQLITE = "sqlite:///"
_PARAM_LIMIT = 6000  # MLflow truncates longer values silently
_BATCH = 1000  # metrics that MLflow takes in one request
_DIGEST = "kronos.digest"
_SERVING = ("mlflow", "torch", "numpy", "pandas", "scipy", "safetensors", "huggingface-hub")


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
                _client(uri).search_experiments(max_results=1)
        return uri
    path = Path(uri.removeprefix(_SQLITE))
    with FileLock(home.root / "mlflow.lock"):
        if not path.exists():
            for leftover in path.parent.glob(f".{path.stem}.*.tmp*"):  # of a killed process
                leftover.unlink()
            with atomic_path(path) as draft:
                _client(f"{_SQLITE}{draft}").search_experiments(max_results=1)
        _client(uri).search_experiments(max_results=1)
    return uri


def end_dead_runs(home: Home) -> None:
    """Close as KILLED what processes of this home left running; only for who holds the home."""
    uri = prepare_store(home)
    client = _client(uri)
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
    uri = prepare_store(home)
    client = _client(uri)
    experiment_id = _experiment(client, experiment, home, uri)
    found = client.search_runs([experiment_id], f"tags.`{_IDENTITY}` = '{identity}'", max_results=1)
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        run = client.create_run(
            experiment_id, run_name=name, tags={_IDENTITY: identity, "mlflow.source.name": "kronos", **tags}
        )
        _log_params(client, run.info.run_id, params)
    for key, value in {**tags, _HOME: _here(home)}.items():
        client.set_tag(run.info.run_id, key, value)
    page = f"{without_login(uri)}/#/experiments/{experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    url = page if uri.startswith("http") else ""
    return RunRef(run_id=run.info.run_id, experiment_id=experiment_id, uri=uri, url=url)


def end_run(
    run: RunRef, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str] | None = None
) -> None:
    """Close the run with a status and last tags."""
    client = _client(run.uri)
    for key, value in (tags or {}).items():
        client.set_tag(run.run_id, key, value)
    client.set_terminated(run.run_id, status)


def log_metrics(run: RunRef, values: Mapping[str, float], step: int = 0) -> None:
    """Record numbers at a step."""
    from mlflow.entities import Metric

    now = _now_ms()
    _client(run.uri).log_batch(
        run.run_id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()]
    )


def log_artifact(run: RunRef, path: str | Path, folder: str | None = None) -> None:
    """Copy a file or a folder into the run."""
    client, path = _client(run.uri), Path(path)
    if path.is_dir():
        client.log_artifacts(run.run_id, str(path), folder or path.name)
    else:
        client.log_artifact(run.run_id, str(path), folder)


def describe_run(run: RunRef, text: str) -> None:
    """The run's description, markdown, shown at its top."""
    client = _client(run.uri)
    link = client.get_run(run.run_id).data.tags.get(_PREFECT_URL)
    client.set_tag(run.run_id, "mlflow.note.content", f"[Prefect run]({link})\n\n{text}" if link else text)


def log_text(run: RunRef, text: str, name: str) -> None:
    """Record a text file."""
    _client(run.uri).log_text(run.run_id, text, name)


def log_table(run: RunRef, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Record rows as a table MLflow's UI can show; a second time replaces it."""
    columns = list(rows[0]) if rows else []
    table = {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}
    client = _client(run.uri)
    client.log_text(run.run_id, json.dumps(table), name)
    client.set_tag(run.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))


def log_dataset(run: RunRef, *, path: str, digest: str, name: str) -> None:
    """Record the dataset a run was trained on, without loading it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": path})
    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)  # 36: MLflow's limit
    tags = [InputTag("mlflow.data.context", "training")]
    _client(run.uri).log_inputs(run.run_id, [DatasetInput(dataset, tags)])


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version of a recipe's registered model: whose weights it holds, and the run that made them."""

    number: str
    run_id: str
    digest: str  # tokenizer's and predictor's, as the folder of a kept model is named


def registered_name(recipe: str) -> str:
    """The registered model of a recipe, as in `models:/kronos-doge_1h@champion`."""
    return f"kronos-{recipe}"


def register_model(
    home: Home,
    run: RunRef,
    recipe: str,
    *,
    digest: str,
    parts: Mapping[str, Path],
    sampling: Mapping[str, float],
    example: Mapping[str, Any],
    tags: Mapping[str, str],
) -> RegisteredVersion:
    """The version that holds these weights as this run made them; registered once, its tags brought up to date.

    `parts` are the folders of tokenizer and predictor, `example` is a small table of candles by column, `sampling`
    the defaults of the parameters.
    """
    client, name = _client(prepare_store(home)), registered_name(recipe)
    tags = {_DIGEST: digest, **tags}
    for known in registered_versions(home, recipe):
        if (known.run_id, known.digest) == (run.run_id, digest):
            for key, value in tags.items():
                client.set_model_version_tag(name, known.number, key, value)
            return known
    model = client.create_logged_model(
        run.experiment_id, name=name, source_run_id=run.run_id, tags=dict(tags), model_type="forecaster"
    )
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "model"
        _save_pyfunc(draft, parts, sampling, example, run_id=run.run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(draft))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [_model_output(model.model_id)])
    _registered_model(client, name, recipe)
    made = client.create_model_version(
        name, model.artifact_location, run.run_id, tags=dict(tags), model_id=model.model_id
    )
    return _registered(made)


def registered_versions(home: Home, recipe: str) -> list[RegisteredVersion]:
    """All versions of a recipe's model, newest first; none before the first night."""
    found = _client(prepare_store(home)).search_model_versions(f"name = '{registered_name(recipe)}'")
    return sorted(map(_registered, found), key=lambda one: -int(one.number))


def alias_version(home: Home, recipe: str, alias: str) -> RegisteredVersion | None:
    """The version an alias names; None where it names none."""
    client, name = _client(prepare_store(home)), registered_name(recipe)
    numbers = {
        known: number for model in _models_named(client, name) for known, number in model.aliases.items()
    }
    return _registered(client.get_model_version(name, numbers[alias])) if alias in numbers else None


def move_alias(home: Home, recipe: str, alias: str, number: str | None) -> None:
    """Make an alias name this version; None takes it away."""
    client, name = _client(prepare_store(home)), registered_name(recipe)
    if number is not None:
        client.set_registered_model_alias(name, alias, number)
    elif _models_named(client, name):
        client.delete_registered_model_alias(name, alias)


class MetricTail:
    """Copies the numbers of a job's metrics.jsonl into a run, each step once, however often the job is resumed."""

    def __init__(self, run: RunRef, path: Path, prefix: str) -> None:
        self._run, self._path, self._prefix = run, path, prefix
        self._offset, self._inode = 0, -1
        self._queue: list[list[Metric]] = []  # by record
        self._seen = {phase: self._last_step(phase) for phase in ("train", "validation")}

    def poll(self) -> dict[str, Any] | None:
        """Queue what is new and return the newest record."""
        records = self._new_records()
        for record in records:
            phase, step = record.get("phase", ""), int(record.get("step", 0))
            if phase in self._seen and step > self._seen[phase]:
                self._seen[phase] = step
                self._queue.append(self._metrics(record, phase, step))
        return records[-1] if records else None

    def send(self) -> None:
        """Send the queue. Raises MlflowException when MLflow does not answer; what was not sent stays queued."""
        while self._queue:
            # Whole records: a step that is known by its loss must be there with all its numbers.
            count = max(1, _BATCH // max(1, *map(len, self._queue)))
            metrics = [metric for record in self._queue[:count] for metric in record]
            _client(self._run.uri).log_batch(self._run.run_id, metrics=metrics)
            del self._queue[:count]

    def _metrics(self, record: Mapping[str, Any], phase: str, step: int) -> list[Metric]:
        from mlflow.entities import Metric

        return [
            Metric(f"{self._prefix}/{phase}/{name}", float(value), _now_ms(), step)
            for name, value in record.items()
            if name not in ("phase", "step", "epoch", "seconds") and isinstance(value, int | float)
        ]

    def _new_records(self) -> list[dict[str, Any]]:
        """Complete lines since the last call; from the start again when a resumed job has cut the file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._offset, self._inode = 0, status.st_ino
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + 1 if complete else 0
        return [json.loads(line) for line in complete.splitlines()]

    def _last_step(self, phase: str) -> int:
        history = _client(self._run.uri).get_metric_history(self._run.run_id, f"{self._prefix}/{phase}/loss")
        return max((point.step for point in history), default=-1)


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


def _save_pyfunc(
    target: Path,
    parts: Mapping[str, Path],
    sampling: Mapping[str, float],
    example: Mapping[str, Any],
    *,
    run_id: str,
    model_id: str,
) -> None:
    """Write the model as MLflow's pyfunc format has it: code as files, weights as safetensors, no pickle."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    import kronos_model

    described = Model(artifact_path=target.name, run_id=run_id, model_id=model_id)
    pyfunc.save_model(
        target,
        mlflow_model=described,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={part: str(folder) for part, folder in parts.items()},
        code_paths=[str(Path(kronos_model.__file__).parent)],
        signature=_signature(sampling),
        input_example=pd.DataFrame(example),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _SERVING],
    )


def _signature(sampling: Mapping[str, float]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    quantiles = [f"q{level:02d}" for level in range(5, 100, 5)]
    key = [ColSpec("string", "series"), ColSpec("datetime", "open_time")]
    prices = [ColSpec("double", name) for name in ("open", "high", "low", "close", "volume")]
    numbers = [ColSpec("double", name) for name in ("mean", *quantiles)]
    defaults = {
        name: ParamSpec(name, "double" if isinstance(value, float) else "long", value)
        for name, value in sampling.items()
    }
    return ModelSignature(
        inputs=Schema([*key, *prices, ColSpec("double", "amount", required=False)]),
        outputs=Schema([*key, ColSpec("long", "step"), *numbers]),
        params=ParamSchema(list(defaults.values())),
    )


def _model_output(model_id: str) -> Any:
    from mlflow.entities import LoggedModelOutput

    return LoggedModelOutput(model_id, step=0)


def _registered_model(client: MlflowClient, name: str, recipe: str) -> None:
    """Make the registered model where there is none; another process may be faster."""
    from mlflow.exceptions import MlflowException

    if _models_named(client, name):
        return
    said = f"Kronos fine-tuned by recipe {recipe}: `champion` serves, `challenger` is the newest that was judged."
    try:
        client.create_registered_model(name, tags={"kronos.recipe": recipe}, description=said)
    except MlflowException:
        if not _models_named(client, name):
            raise


def _models_named(client: MlflowClient, name: str) -> list[Any]:
    return list(client.search_registered_models(f"name = '{name}'"))


def _registered(found: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        number=str(found.version), run_id=found.run_id or "", digest=found.tags.get(_DIGEST, "")
    )


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


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(k, str(v)[:_PARAM_LIMIT]) for k, v in params.items()])


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _here(home: Home) -> str:
    """A home among those that share an MLflow server."""
    return f"{socket.gethostname()}:{home.root}"


def _now_ms() -> int:
    return int(time.time() * 1000)
