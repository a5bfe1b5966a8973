"""MLflow: all that imports it, but for tasks/pyfunc_model.py, which MLflow runs where a model is served.

A run is found again by its identity tag, so a resumed night continues its run instead of starting a second one.
All calls go through MlflowClient: MLflow's "active run" is thread-local and would not be seen by other threads.
"""

from tasks.tracking.registered import (
    RegisteredVersion,
    alias_version,
    move_alias,
    register_model,
    registered_name,
    registered_versions,
)
from tasks.tracking.runs import (
    begin_run,
    describe_run,
    end_dead_runs,
    end_run,
    log_artifact,
    log_dataset,
    log_metrics,
    log_table,
    log_text,
    system_metrics,
)
from tasks.tracking.store import prepare_store, tolerant, tracking_uri
from tasks.tracking.tail import MetricTail

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
