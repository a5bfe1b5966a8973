"""A lock that a second process cannot take and that dies with its process."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.atomic import storage_errors
from storage.errors import LockedError

__all__ = ["ProcessLock"]


class ProcessLock:
    """An flock on `path`; reentrant within its thread through the same object.

    Beside it, `<path>.json` tells who holds it. That file decides nothing: a killed process leaves it, and its
    successor learns from it who that was.
    """

    def __init__(self, path: Path, *, guarded: str) -> None:
        self._path = path
        self._holder = path.with_name(f"{path.name}.json")
        self._guarded = guarded
        self._lock = FileLock(path)

    @contextmanager
    def hold(self, purpose: str, *, wait_s: float = 0.0, run: str = "") -> Iterator[str]:
        """Hold the lock for the block; LockedError that names the holder when it stays taken for `wait_s`.

        Yields the `run` of the last holder where that died without a word, else nothing ("").
        """
        again = self._lock.is_locked
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=wait_s)
            except Timeout as error:
                raise LockedError(self._refusal()) from error
        try:
            dead = "" if again else str(self._signature().get("run", ""))
            if not again:
                self._sign(purpose, run)
            yield dead
        finally:
            if not again:
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _sign(self, purpose: str, run: str) -> None:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        told = {"pid": os.getpid(), "purpose": purpose, "since": since, "run": run}
        with storage_errors(self._holder):
            self._holder.write_text(json.dumps(told))

    def _signature(self) -> dict[str, Any]:
        """What the holder has signed; nothing where there is none, or not yet."""
        try:
            told = json.loads(self._holder.read_text())
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def _refusal(self) -> str:
        holder = self._signature()
        who = "another process at work"
        if {"pid", "purpose", "since"} <= set(holder):
            who = f"process {holder['pid']} ({holder['purpose']}) at work since {holder['since']}"
        return f"expected {self._guarded} to be free, found {who}; wait until it ends or stop it"
