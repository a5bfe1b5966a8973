"""A lock that a second process cannot take and that dies with its process."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from storage.atomic import storage_errors
from storage.errors import LockedError

__all__ = ["ProcessLock"]


class ProcessLock:
    """An flock on `path`; reentrant within its thread through the same object.

    Beside it, `<path>.json` tells who holds it. That file decides nothing: a killed process leaves it.
    """

    def __init__(self, path: Path, *, guarded: str) -> None:
        self._path = path
        self._holder = path.with_name(f"{path.name}.json")
        self._guarded = guarded
        self._lock = FileLock(path)

    @contextmanager
    def hold(self, purpose: str, *, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock for the block; LockedError that names the holder when it stays taken for `wait_s`."""
        again = self._lock.is_locked
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=wait_s)
            except Timeout as error:
                raise LockedError(self._refusal()) from error
        try:
            if not again:
                self._sign(purpose)
            yield
        finally:
            self._lock.release()

    def _sign(self, purpose: str) -> None:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with storage_errors(self._holder):
            self._holder.write_text(json.dumps({"pid": os.getpid(), "purpose": purpose, "since": since}))

    def _refusal(self) -> str:
        try:
            holder = json.loads(self._holder.read_text())
            who = f"process {holder['pid']} ({holder['purpose']}) at work since {holder['since']}"
        except (OSError, ValueError, KeyError):  # the holder has not signed yet
            who = "another process at work"
        return f"expected {self._guarded} to be free, found {who}; wait until it ends or stop it"
