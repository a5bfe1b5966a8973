"""A night of the same functions without Prefect and MLflow: neither is imported, nothing is recorded.

    python -m benchmarks.peers.bare_night HOME KEY=VALUE ...

Prefect's modules are stand-ins whose decorators return what they decorate; the calls to MLflow do nothing.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

__all__ = ["main"]

_MODULES = (
    "prefect",
    "prefect.artifacts",
    "prefect.blocks",
    "prefect.blocks.system",
    "prefect.cache_policies",
    "prefect.client",
    "prefect.client.orchestration",
    "prefect.client.schemas",
    "prefect.client.schemas.objects",
    "prefect.exceptions",
    "prefect.runtime",
    "prefect.states",
    "prefect.task_engine",
    "prefect.utilities",
    "prefect.utilities.urls",
)
_CAUGHT = ("TerminationSignal", "ObjectNotFound", "TaskRunTimeoutError")


def main() -> None:
    home, *assignments = sys.argv[1:]
    os.environ["KRONOS_HOME"] = home
    _without_prefect()
    _without_mlflow()
    from flows.config import parse_assignments
    from flows.nightly import nightly

    summary: Any = nightly("demo", settings=parse_assignments(assignments))
    print(summary["night"])


class _Task:
    """What a task is without Prefect: its function."""

    name = ""

    def __init__(self, function: Any) -> None:
        self.fn = function
        self.__name__ = function.__name__

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.fn(*arguments, **options)

    def with_options(self, **_: Any) -> "_Task":
        return self


class _Module(ModuleType):
    """Has every name it is asked for, as something that takes any call."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {}) if name in _CAUGHT else MagicMock(name=name)


def _without_prefect() -> None:
    for name in _MODULES:
        sys.modules[name] = _Module(name)
    prefect: Any = sys.modules["prefect"]
    prefect.task = lambda **_: _Task
    prefect.flow = lambda **_: lambda function: function


def _without_mlflow() -> None:
    """Before anything takes a function out of tasks.tracking."""
    from tasks.refs import RunRef
    from tasks.tracking import registered, runs, store, tail

    made: list[registered.RegisteredVersion] = []

    def register(home: Any, run: RunRef, recipe: str, *, digest: str, **_: Any) -> Any:
        made.append(registered.RegisteredVersion(number=str(len(made) + 1), run_id="", digest=digest))
        return made[-1]

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    silent = "end_dead_runs end_run log_artifact log_dataset log_metrics log_table log_text describe_run move_alias"
    replaced: dict[str, Any] = {
        **dict.fromkeys(silent.split(), lambda *_, **__: None),
        "begin_run": lambda *_, **__: RunRef(run_id="", experiment_id="", uri="", url=""),
        "alias_version": lambda *_: None,
        "register_model": register,
        "registered_versions": lambda *_: made,
        "system_metrics": nothing,
        "tolerant": nothing,
    }
    for module in (registered, runs, store):
        for name in replaced.keys() & vars(module).keys():
            setattr(module, name, replaced[name])
    untold: Any = tail.MetricTail
    untold._last_step = lambda *_: -1
    untold._metrics = lambda *_: []
    tail.send = lambda one: one._queue.clear()


if __name__ == "__main__":
    main()
