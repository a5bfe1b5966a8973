"""Retries, caching and time limits, in one place.

Every task is idempotent by what it writes (content-addressed folders, upserts), so none is cached by Prefect: a
cached path may point to a folder that is gone. HTTP retries live in exchange/ and kronos_model/publish; Prefect
retries only what waits for another process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.task_engine import TaskRunTimeoutError

from storage.layout import Home
from tasks.time_limits import OutOfTime, TimeLimits

__all__ = ["IDEMPOTENT", "within"]

IDEMPOTENT: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

P = ParamSpec("P")
R = TypeVar("R")


def within(task: Task[P, R], limits: TimeLimits, name: str) -> Callable[P, R]:
    """`task` with the limit of that name. Call it in the main thread: a signal cuts it off wherever it is.

    Raises OutOfTime instead of Prefect's timeout, which does not say whose time was over.
    """
    hours: float = getattr(limits, name)
    limited = task.with_options(timeout_seconds=hours * 3600)

    @wraps(task.fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with ExitStack() as stack:
                if args and isinstance(args[0], Home):  # what it has made must not be lost with this machine
                    stack.enter_context(args[0].writing(task.name))
                return limited(*args, **kwargs)
        except TaskRunTimeoutError as error:
            raise OutOfTime(
                f"Expected {task.name} to end within {hours:g} hours (limits.{name}), found it still at work; run the "
                "same again, which goes on from what is done, or raise the limit."
            ) from error

    return call
