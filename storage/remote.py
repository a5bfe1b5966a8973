"""Homes on object storage: `s3://bucket/prefix` opened as a working copy, pulled, written to in turns and pushed.

A home that is on this machine's disk alone passes through all of this unchanged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from storage.errors import StorageError
from storage.remote_bucket import endpoint, s3_url
from storage.remote_copy import WorkingCopy
from storage.remote_lease import BEAT_S, Lease, LostLeaseError, Taken

__all__ = ["confirm_turn", "describe", "kept_fresh", "local_root", "refresh", "turn"]

_SAVE_S = 120.0  # what a machine that dies may lose of a training's progress
_FRESH_S = 60.0

logger = logging.getLogger(__name__)


def local_root(home: str) -> Path:
    """The folder of a home: itself, or the working copy of an s3:// address below KRONOS_CACHE, begun where missing."""
    url = s3_url(home)
    if url is None:
        return Path(home)
    cache = Path(os.environ.get("KRONOS_CACHE") or "~/.cache/kronos-nightly").expanduser()
    digest = hashlib.sha256(f"{endpoint()} {url}".encode()).hexdigest()[:8]
    root = cache / f"{re.sub(r'[^a-z0-9]+', '-', url.removeprefix('s3://').lower())}-{digest}"
    WorkingCopy.begin(root, url)
    return root


def refresh(root: Path) -> None:
    """Pull what is new, where `root` is a working copy that nobody on this machine is writing to."""
    copy = WorkingCopy.of(root)
    if copy is None:
        return
    with _door(copy), _alone(copy) as alone:
        if alone:
            copy.pull()


@contextmanager
def kept_fresh(root: Path) -> Iterator[None]:
    """Refresh every minute while the block runs; a store that does not answer is a warning."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(_FRESH_S):
            with _tolerated():
                refresh(root)

    thread = threading.Thread(target=work, name="pull", daemon=True)
    if (root / ".remote").exists():
        thread.start()
    try:
        yield
    finally:
        stop.set()


@contextmanager
def turn(root: Path, purpose: str, *, run: str = "") -> Iterator[str]:
    """Write to a home. On object storage no other machine does meanwhile, and what was made is pushed at the end.

    LockedError where another machine has its turn. Processes of this machine share one; within a process it may be
    nested, and then an inner end pushes as well, but leaves a store that does not answer to the outer one. Yields the
    flow run of a machine that died in its turn, else nothing ("").
    """
    copy = WorkingCopy.of(root)
    if copy is None:
        yield ""
        return
    with _TURNS_LOCK:
        mine = _TURNS.get(root)
        outermost = mine is None
        if mine is None:
            mine = _TURNS[root] = _Turn(copy, purpose, run)
    if not outermost:
        mine.check()
    failed = True
    try:
        yield mine.dead if outermost else ""
        failed = False
    finally:
        if outermost:
            mine.end(failed=failed)
        elif not failed:
            with _tolerated():
                mine.push()


def confirm_turn(root: Path) -> None:
    """Ask the store whether this machine still has its turn; LostLeaseError where another has it by now."""
    if (mine := _TURNS.get(root)) is not None:
        mine.lease.renew()


def describe(root: Path) -> str:
    """Where a working copy comes from, how much it is and who writes to it; empty for a home on this disk alone."""
    copy = WorkingCopy.of(root)
    if copy is None:
        return ""
    files, size = copy.totals()
    holder = Lease(copy.bucket, copy.owner, purpose="").holder()
    return f"{copy.url}, {files:,} files, {size / 1e6:,.1f} MB; {holder or 'nobody writes to it'}"


class _Turn:
    """This process's share in the turn of its machine: renewed and saved in the background until it ends."""

    def __init__(self, copy: WorkingCopy, purpose: str, run: str) -> None:
        self._copy = copy
        self.lease = Lease(copy.bucket, copy.owner, purpose=purpose, run=run)
        self.dead = ""
        self._lost: LostLeaseError | None = None
        self._stop = threading.Event()
        with _door(copy):
            with _alone(copy) as alone:
                if alone:
                    self._begin(self.lease.take())
                else:
                    self.lease.renew()
            self._share = _users(copy)
            _locked(self._share, shared=True)
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._beat, self._save)
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise what the last renewal said, if another machine has taken over."""
        if self._lost is not None:
            raise self._lost

    def push(self) -> None:
        """Push what is new here."""
        self.check()
        self._copy.push(self.lease.renew)

    def end(self, *, failed: bool) -> None:
        """Push a last time, stop, and give the lease back if no process of this machine needs it any more.

        After a failure that one is told, and what cannot be pushed stays here for the next turn.
        """
        try:
            self.push()
        except StorageError as error:
            if not failed:
                raise
            logger.warning("%s", error)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
            self._leave()

    def _begin(self, taken: Taken) -> None:
        try:
            self._copy.pull()
            if taken.died:
                self.dead = taken.run
                self._copy.push(self.lease.renew, fence=True)
                self._copy.sweep()
        except BaseException:
            with _tolerated():
                self.lease.give_back()
            raise

    def _leave(self) -> None:
        _TURNS.pop(self._copy.root, None)
        with _door(self._copy):
            self._share.close()
            with _alone(self._copy) as alone, _tolerated():
                if alone:
                    self.lease.give_back()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                with _tolerated():
                    self.lease.renew()
            except LostLeaseError as error:
                self._lost = error
                logger.error("%s", error)
                return

    def _save(self) -> None:
        while self._lost is None and not self._stop.wait(_SAVE_S):
            try:
                with _tolerated():
                    self.push()
            except LostLeaseError as error:
                self._lost = error


_TURNS: dict[Path, _Turn] = {}  # of this process, by working copy
_TURNS_LOCK = threading.Lock()


def _door(copy: WorkingCopy) -> FileLock:
    """One process at a time comes, goes or pulls."""
    return FileLock(copy.state / "door.lock")


@contextmanager
def _alone(copy: WorkingCopy) -> Iterator[bool]:
    """Whether no process of this machine has its share in a turn; nobody can get one before the block ends."""
    with _users(copy) as file:
        yield _locked(file, shared=False)


def _users(copy: WorkingCopy) -> IO[str]:
    """The file that every process with a share in the turn holds a lock on, until it ends, however it ends."""
    return (copy.state / "users").open("a")


def _locked(file: IO[str], *, shared: bool) -> bool:
    """Take the lock, without waiting; whether that went well."""
    import fcntl  # not everywhere, and needed by working copies alone

    try:
        fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    return True


@contextmanager
def _tolerated() -> Iterator[None]:
    """A store that does not answer is a warning: what is not pushed now is pushed later."""
    try:
        yield
    except LostLeaseError:
        raise
    except StorageError as error:
        logger.warning("%s", error)
