"""One of several nights at once, as a process: `python -m flows.night_process HOME ANSWER PARENT`.

tasks/fan_out.py starts it in a worker, tells it the flow run it belongs to and its parameters on stdin, as JSON, and
reads what it leaves in the file ANSWER. It ends, resumably, once the process PARENT is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from flows.environment import log_to_stderr, open_home, prepare_environment
from storage.atomic import write_json
from storage.locks import ProcessLock

if TYPE_CHECKING:  # they read the environment, which is prepared first
    from prefect import Flow

__all__ = ["main"]

_POLL_S = 0.5
_PATIENCE_S = 60.0


def main(root: str, answer: str, parent: str) -> None:
    """Run the night and write {"summary": ...}, or {"failure": sentence}."""
    log_to_stderr()
    home = open_home(Path(root))
    prepare_environment(home, verbose=False)
    threading.Thread(target=_end_without, args=(int(parent),), daemon=True).start()
    from flows.each import night, sentence

    order: dict[str, Any] = json.load(sys.stdin)
    recipe: str = order["parameters"]["recipe"]
    # A worker that is killed is followed by another at once, perhaps before its night has seen that.
    lock = ProcessLock(home.models / recipe / ".night.lock", guarded=f"{recipe}")
    with lock.hold("night", wait_s=_PATIENCE_S):
        found = _run_below(night, UUID(order["flow_run"]), order["tags"], order["parameters"])
    told = {"failure": sentence(found)} if isinstance(found, BaseException) else {"summary": found}
    write_json(Path(answer), json.loads(json.dumps(told, default=str)))


def _run_below(flow: Flow[..., Any], parent: UUID, tags: list[str], parameters: dict[str, Any]) -> Any:
    """Run a flow as a subflow of the flow run `parent`; its result, or the exception that it ended with."""
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    with get_client(sync_client=True) as client:
        # What stands for a subflow among its parent's tasks, as Prefect's engine makes it within one process.
        task = prefect.Task(flow.fn, name=flow.name)
        place = client.create_task_run(task, parent, dynamic_key=uuid4().hex, name=parameters["recipe"])
        run = client.create_flow_run(flow, parameters=parameters, tags=tags, parent_task_run_id=place.id)
    with prefect.tags(*tags):
        state: Any = run_flow(flow, flow_run=run, parameters=parameters, return_type="state")
    return state.result(raise_on_failure=False)


def _end_without(parent: int) -> None:
    """SIGTERM to this process once nobody waits for it."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
