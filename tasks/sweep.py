"""Forgetting what nothing needs any more."""

from __future__ import annotations

import logging

from prefect import task
from prefect.artifacts import create_table_artifact

from storage.layout import Home
from storage.retention import Expired, RetentionPolicy, discard, expired
from tasks.policies import IDEMPOTENT

__all__ = ["sweep"]

logger = logging.getLogger(__name__)


@task(name="sweep", task_run_name="sweep", **IDEMPOTENT)
def sweep(home: Home, policy: RetentionPolicy, *, delete: bool) -> tuple[Expired, ...]:
    """Find what `policy` lets go of and, where told to, delete it."""
    found = tuple(expired(home, policy))
    create_table_artifact(
        table=[_row(home, one) for one in found],
        key="expired",
        description="Deleted" if delete else "What would be deleted",
    )
    if delete:
        for one in found:
            discard(one)
        logger.info(
            "%d files and folders deleted, %.1f MB.", len(found), sum(one.size for one in found) / 1e6
        )
    return found


def _row(home: Home, one: Expired) -> dict[str, str | float]:
    path = str(one.path.relative_to(home.root))
    return {"kind": one.kind, "path": path, "days": round(one.age_days, 1), "MB": round(one.size / 1e6, 2)}
