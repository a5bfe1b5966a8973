"""A lock that dies with its process: flock on a file that names the holder."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kronos_model.errors import ModelError

__all__ = ["locked"]

_POLL_S = 0.2


@contextmanager
def locked(path: Path, *, what: str, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock file at path; `what` names the work in the refusal.

    Where another process holds it, this is a ModelError; given `waiting`, a wait that calls it.
    """
    with path.open("a+", encoding="utf-8") as file:
        while not _taken(file.fileno()):
            if waiting is None:
                file.seek(0)
                raise ModelError(
                    f"{what} is already being run by {file.read() or 'another process'}; "
                    "wait until it has ended or stop it first"
                )
            waiting()
            time.sleep(_POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
