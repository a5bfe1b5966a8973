"""One run at a time on a home: who comes second is skipped with a word, who died is written off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from storage.errors import LockedError
from storage.layout import Home

__all__ = ["with_home"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def with_home(home: Home, purpose: str, work: Callable[[], T], *, alone: bool = True) -> T | State:
    """Do `work` with the home to itself; where another run has it, the flow run ends as Skipped and says whose it is.

    Not `alone` it may run beside others of this machine; on object storage never beside another machine's.
    The state is what Prefect makes of a flow that returns one; a caller of the flow gets a CancelledRun.
    """
    with ExitStack() as stack:
        try:
            enter = home.exclusive if alone else home.writing
            dead = stack.enter_context(enter(purpose, run=str(flow_run.id or "")))
        except LockedError as error:
            return Cancelled(name="Skipped", message=str(error))
        if dead:
            _write_off(UUID(dead))
        return work()


def _write_off(run: UUID) -> None:
    """End the flow run of a process that can no longer do so: a SIGKILL, a power cut, a machine out of memory."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:  # it ran under another Prefect server
            return
        if state is None or state.is_final():
            return
        message = "Its process ended without a word; the run that came next goes on from what it had done."
        client.set_flow_run_state(run, Crashed(message=message), force=True)
        logger.warning(
            "Flow run %s was left running by a process that is gone; it is marked as crashed.", run
        )
