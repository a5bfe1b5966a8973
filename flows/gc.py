"""Forget what a home no longer needs."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.config import override
from flows.environment import open_home
from flows.forms import Retention
from flows.home_access import with_home
from storage.retention import Expired, RetentionPolicy
from tasks.sweep import sweep

__all__ = ["gc"]


@flow(name="gc", flow_run_name="gc")
def gc(delete: bool = False, settings: Retention = None) -> tuple[Expired, ...] | State:
    """Delete old checkpoints, tokens, jobs, datasets, models, forecasts and pictures; never what a champion needs.

    Args:
        delete: Delete what is found. Without it the run only shows what would go.
        settings: How long to keep things; what stays empty is kept for as long as the documentation says.
    """
    policy, home = override(RetentionPolicy(), settings or {}), open_home()
    return with_home(home, "gc", lambda: sweep(home, policy, delete=delete))
