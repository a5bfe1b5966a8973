"""One of several nights at once, as a process: `python -m flows.night_process HOME ANSWER PARENT`.

tasks/fan_out.py starts it in a worker, hands it the run it belongs to and its parameters on stdin, and reads what it
leaves in the file ANSWER. It ends, resumably, once the process PARENT is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flows.environment import log_to_stderr, open_home, prepare_environment
from storage.atomic import write_json
from storage.locks import ProcessLock

__all__ = ["main"]

_POLL_S = 0.5
_PATIENCE_S = 60.0


def main(root: str, answer: str, parent: str) -> None:
    """Run the night and write {"summary": ...}, or {"failure": sentence}."""
    log_to_stderr()
    home = open_home(Path(root))
    prepare_environment(home, verbose=False)
    threading.Thread(target=_end_without, args=(int(parent),), daemon=True).start()
    import cloudpickle
    from prefect.context import hydrated_context

    from flows.each import night, sentence

    order: dict[str, Any] = cloudpickle.load(sys.stdin.buffer)
    recipe: str = order["parameters"]["recipe"]
    # A worker that is killed is followed by another at once, perhaps before its night has seen that.
    lock = ProcessLock(home.models / recipe / ".night.lock", guarded=f"{recipe}")
    with lock.hold("night", wait_s=_PATIENCE_S), hydrated_context(order["context"]):
        state = night(**order["parameters"], return_state=True)
        found: Any = state.result(raise_on_failure=False)
    told = {"failure": sentence(found)} if isinstance(found, BaseException) else {"summary": found}
    write_json(Path(answer), json.loads(json.dumps(told, default=str)))


def _end_without(parent: int) -> None:
    """SIGTERM to this process once nobody waits for it."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
