"""What every task has in common."""

import importlib
import pkgutil

from prefect import Task
from prefect.cache_policies import NO_CACHE

import tasks


def test_no_task_is_cached_by_prefect_or_retried_by_it() -> None:
    modules = [importlib.import_module(f"tasks.{one.name}") for one in pkgutil.iter_modules(tasks.__path__)]
    found = {
        item.name: item for module in modules for item in vars(module).values() if isinstance(item, Task)
    }
    assert {"train", "evaluate", "publish", "forecast", "dataset"} < set(found)
    for name, task in found.items():
        assert task.cache_policy == NO_CACHE, name
        assert task.persist_result is False, name
