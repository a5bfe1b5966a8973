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
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive of Windows

logger = logging.getLogger(__name__)


def local_root(home: str) -> Path:
    """The folder of a home: itself, or the working copy of an s3:// address below KRONOS_CACHE, begun where missing.

    StorageError for what is neither: an empty text, or another kind of address.
    """
    url = s3_url(home)
    if url is None:
        if not home.strip() or _ADDRESS.match(home):
            raise StorageError(
                f"expected a folder or s3://bucket/prefix as the home, found {home!r}; correct --home or KRONOS_HOME, "
                "or leave both out for ./.kronos"
            )
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
        if _alone(users) and (unpushed := copy.pull()):
            logger.warning(
                "%s of the files in %s are not in %s yet; the next run here that writes pushes them.",
                unpushed, root, copy.url,
            )  # fmt: skip


@contextmanager
def kept_fresh(root: Path) -> Iterator[None]:
    """Refresh every minute while the block runs; a store that does not answer is a warning."""
    if WorkingCopy.of(root) is None:
        yield
        return
    with _every(_FRESH_S, lambda: refresh(root)):
        yield


@contextmanager
def turn(root: Path, purpose: str, *, run: str = "") -> Iterator[str]:
    """Write to a home. On object storage no other machine does meanwhile, and what was made is pushed at the end.

    Processes and threads of this machine share its turn, which ends with the last of them; who ends before leaves a
    store that does not answer to that one, and after a failure what cannot be pushed is left to the next turn.
    LockedError where another machine has its turn. Yields the flow run of one that died in it, else nothing ("").
    """
    copy = WorkingCopy.of(root)
    if copy is None:
        yield ""
        return
    lease = Lease(copy.store, copy.owner)
    with _users(copy) as users:
        dead = _enter(copy, lease, users, purpose, run)
        try:
            with _every(BEAT_S, lease.renew), _every(_SAVE_S, lambda: copy.push(lease.renew)):
                yield dead
        except BaseException:
            _leave(copy, lease, users, failed=True)
            raise
        _leave(copy, lease, users, failed=False)


def confirm_turn(root: Path) -> None:
    """Ask the store whether this machine still has its turn; LostLeaseError where another has it by now."""
    if (copy := WorkingCopy.of(root)) is not None:
        Lease(copy.store, copy.owner).renew()


def describe(root: Path) -> str:
    """Where a working copy comes from, how much it is and who writes to it; empty for a home on this disk alone."""
    copy = WorkingCopy.of(root)
    if copy is None:
        return ""
    return f"{copy.describe()}; {Lease(copy.store, copy.owner).holder() or 'nobody writes to it'}"


def _enter(copy: WorkingCopy, lease: Lease, users: IO[str], purpose: str, run: str) -> str:
    """Take the lease and pull, or join who has done so on this machine; the flow run of a machine that died."""
    with _door(copy), ExitStack() as undo:
        dead = None
        if _alone(users):
            dead = lease.take(purpose, run)
            undo.callback(lease.give_back)
            copy.pull()
            if dead is not None:
                copy.push(lease.renew, fence=True)
        elif isinstance(lost := _attempt(lease.renew), LostLeaseError):
            raise lost
        _alone(users, shared=True)
        undo.pop_all()
    return dead or ""


def _leave(copy: WorkingCopy, lease: Lease, users: IO[str], *, failed: bool) -> None:
    """Push, and where nobody else of this machine is left, see that all is pushed and give the lease back."""
    error = _attempt(lambda: copy.push(lease.renew))
    with _door(copy):
        if last := _alone(users):
            error = error or _attempt(lambda: copy.push(lease.renew))
            _attempt(lease.give_back)
    if error and not failed and (last or isinstance(error, LostLeaseError)):
        raise error


def _door(copy: WorkingCopy) -> FileLock:
    """One process or thread at a time comes, goes or pulls."""
    return FileLock(copy.state / "door.lock")


def _users(copy: WorkingCopy) -> IO[str]:
    """The file that everyone with a share in the turn holds a lock on, until it ends, however it ends."""
    return (copy.state / "users").open("a")


def _alone(users: IO[str], *, shared: bool = False) -> bool:
    """Whether nobody else of this machine has its share in a turn; from then on held, or shared with others."""
    import fcntl  # not everywhere, and needed by working copies alone

    try:
        fcntl.flock(users, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    return True


@contextmanager
def _every(seconds: float, work: Callable[[], object]) -> Iterator[None]:
    """Do it again and again during the block, until the lease is lost."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            if isinstance(_attempt(work), LostLeaseError):
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _attempt(work: Callable[[], object]) -> StorageError | None:
    """Do it; that the store does not answer is a warning: what is not pushed now is pushed later."""
    try:
        work()
    except StorageError as error:
        logger.warning("%s", error)
        return error
    return None
