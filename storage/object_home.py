"""Homes on object storage: `s3://bucket/prefix` opened as a working copy, pulled, written to in turns and pushed.

A home that is on this machine's disk alone passes through all of this unchanged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from storage.errors import StorageError
from storage.lease import BEAT_S, Lease, LostLeaseError
from storage.object_store import endpoint, s3_url
from storage.working_copy import WorkingCopy

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
    WorkingCopy.of(root, begun_for=url)
    return root


def refresh(root: Path) -> None:
    """Pull what is new, where `root` is a working copy that nobody on this machine is writing to."""
    copy = WorkingCopy.of(root)
    if copy is None:
        return
    with _door(copy), _users(copy) as users:
        if _locked(users) and (unpushed := copy.pull()):
            logger.warning(
                "%s of the files in %s are not in %s yet; the next run here that writes pushes them.",
                unpushed, root, copy.url,
            )  # fmt: skip


@contextmanager
def kept_fresh(root: Path) -> Iterator[None]:
    """Refresh every minute while the block runs; a store that does not answer is a warning."""
    stop = threading.Event()
    if (root / ".remote").exists():
        _repeat(lambda: refresh(root), _FRESH_S, stop)
    try:
        yield
    finally:
        stop.set()


@contextmanager
def turn(root: Path, purpose: str, *, run: str = "") -> Iterator[str]:
    """Write to a home. On object storage no other machine does meanwhile, and what was made is pushed at the end.

    LockedError where another machine has its turn. Processes and threads of this machine share one, which ends with
    the last of them; who ends before pushes as well, but leaves a store that does not answer to the last. Yields the
    flow run of a machine that died in its turn, else nothing ("").
    """
    copy = WorkingCopy.of(root)
    if copy is None:
        yield ""
        return
    with _TURNS_LOCK:
        mine = _TURNS.get(root) or _TURNS.setdefault(root, _Turn(copy, purpose, run))
        dead = mine.join()
    try:
        yield dead
    except BaseException:
        mine.leave(failed=True)
        raise
    mine.leave(failed=False)


def confirm_turn(root: Path) -> None:
    """Ask the store whether this machine still has its turn; LostLeaseError where another has it by now."""
    if (mine := _TURNS.get(root)) is not None:
        mine.renew()


def describe(root: Path) -> str:
    """Where a working copy comes from, how much it is and who writes to it; empty for a home on this disk alone."""
    copy = WorkingCopy.of(root)
    if copy is None:
        return ""
    holder = Lease(copy.store, copy.owner).holder()
    return f"{copy.describe()}; {holder or 'nobody writes to it'}"


class _Turn:
    """This process's share in the turn of its machine: renewed and saved until the last of its threads leaves."""

    def __init__(self, copy: WorkingCopy, purpose: str, run: str) -> None:
        self._copy, self._dead, self._writers = copy, "", 0
        self._lease = Lease(copy.store, copy.owner, purpose, run)
        self._lost: LostLeaseError | None = None
        stop = threading.Event()
        with _door(copy), ExitStack() as ends:
            self._share = ends.enter_context(_users(copy))
            if _locked(self._share):
                died = self._lease.take()
                ends.callback(self._give_back)
                copy.pull()
                if died is not None:
                    self._dead = died
                    self._push(fence=True)
            else:
                self.renew()
                ends.callback(self._give_back)
            _locked(self._share, shared=True)
            for work, seconds in ((self.renew, BEAT_S), (self._push, _SAVE_S)):
                ends.callback(_repeat(work, seconds, stop).join)
            ends.callback(stop.set)
            self._ends = ends.pop_all()

    def renew(self) -> None:
        """Ask for the lease and renew it; LostLeaseError from the moment that another machine has it."""
        try:
            self._lease.renew()
        except LostLeaseError as error:
            self._lost = error
            raise

    def join(self) -> str:
        """One more writes; the first one is told the flow run of a machine that died in its turn."""
        if self._lost is not None:
            raise self._lost
        self._writers += 1
        dead, self._dead = self._dead, ""
        return dead

    def leave(self, *, failed: bool) -> None:
        """Push; with the last one the turn ends, and the machine's if no other process of it needs the lease.

        After a failure that one is told, and what cannot be pushed stays here for the next turn.
        """
        try:
            if self._writers > 1 and not failed:
                with _tolerated():
                    self._push()
        finally:
            with _TURNS_LOCK:
                self._writers -= 1
                if not self._writers:
                    self._end(failed=failed)

    def _push(self, *, fence: bool = False) -> None:
        self._copy.push(self.renew, fence=fence)

    def _end(self, *, failed: bool) -> None:
        try:
            self._push()
        except StorageError as error:
            if not failed:
                raise
            logger.warning("%s", error)
        finally:
            del _TURNS[self._copy.root]
            with _door(self._copy):
                self._ends.close()

    def _give_back(self) -> None:
        with _tolerated():
            if _locked(self._share):
                self._lease.give_back()


_TURNS: dict[Path, _Turn] = {}  # of this process, by working copy
_TURNS_LOCK = threading.Lock()


def _door(copy: WorkingCopy) -> FileLock:
    """One process at a time comes, goes or pulls."""
    return FileLock(copy.state / "door.lock")


def _users(copy: WorkingCopy) -> IO[str]:
    """The file that every process with a share in the turn holds a lock on, until it ends, however it ends."""
    return (copy.state / "users").open("a")


def _locked(users: IO[str], *, shared: bool = False) -> bool:
    """Take the lock, without waiting; not shared, whether no process of this machine has its share in a turn."""
    import fcntl  # not everywhere, and needed by working copies alone

    try:
        fcntl.flock(users, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    return True


def _repeat(work: Callable[[], None], seconds: float, stop: threading.Event) -> threading.Thread:
    """Do it again and again until `stop`, or until the lease is lost."""

    def repeat() -> None:
        while not stop.wait(seconds):
            try:
                with _tolerated():
                    work()
            except LostLeaseError as error:
                logger.error("%s", error)
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    return thread


@contextmanager
def _tolerated() -> Iterator[None]:
    """A store that does not answer is a warning: what is not pushed now is pushed later."""
    try:
        yield
    except LostLeaseError:
        raise
    except StorageError as error:
        logger.warning("%s", error)
