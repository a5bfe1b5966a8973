"""Files and directories that appear whole or not at all: temp beside the target, fsync, rename, fsync."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.errors import StorageError

__all__ = [
    "atomic_directory",
    "atomic_path",
    "remove_directory",
    "remove_leftovers",
    "storage_errors",
    "write_json",
]

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EACCES: "this user may not write there; grant it write permission or choose another home",
    errno.EPERM: "this user may not write there; grant it write permission or choose another home",
    errno.ENOTDIR: "a part of its path is a file; choose another home",
    errno.EROFS: "the file system is read-only; choose another home or remount it",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and a read-only file system into a StorageError about `path`."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"expected to write {path}, found that {remedy}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temp path beside `path` to write; it becomes `path` when the block ends well.

    When the block or the disk fails the temp file goes away and `path` keeps what it had.
    """
    temporary = _temporary(path)
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new temp directory beside `path` to fill; it becomes `path` when the block ends well.

    A `path` that exists with something in it is an error: what was once whole is not replaced.
    """
    temporary = _temporary(path)
    with storage_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in sorted(temporary.rglob("*"), reverse=True):
                _fsync(entry)
            _fsync(temporary)
            _rename_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; NaN and infinity are no JSON and are refused."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise StorageError(f"expected JSON values for {path}, found {error}; replace it by null") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def remove_directory(path: Path) -> None:
    """Delete a directory; it first takes a temp name, so that what is left of a broken-off deletion is no `path`."""
    doomed = path.with_name(f".{path.name}.gc.tmp")
    if doomed.exists():
        shutil.rmtree(doomed)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(directory: Path) -> None:
    """Remove temp files and directories that a killed writer left; only for who holds the writer's lock."""
    for leftover in directory.glob(".*.tmp*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # The suffix stays, since some writers (numpy.save) append theirs where it is missing.
    return path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def _rename_directory(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise StorageError(f"expected no {path}, found one; delete it or choose another name") from error


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
