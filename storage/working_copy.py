"""A working copy on this machine's disk of a home on object storage.

In the bucket, below the home's prefix: `files/...`, every file under its path and its digest, never changed, only added
and removed; `manifest.json`, which of them the home consists of, replaced by a conditional put, and last; `lease.json`
(storage.lease). So a push that is cut off leaves the home as it was, and one put decides for champion, ledger and
weights alike. What differs from the manifest that the copy last agreed on was changed here and is yet to be pushed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple, TypeVar

from filelock import FileLock

from storage.atomic import atomic_path, write_json
from storage.errors import StorageError
from storage.lease import LostLeaseError
from storage.object_store import MovedError, ObjectStore, endpoint

__all__ = ["AREAS", "WorkingCopy"]

AREAS = ("lake", "datasets", "models", "forecasts", "jobs", "hub", "reports")

_MANIFEST = "manifest.json"
_TRIES = 5
_Facts = tuple[int, int]  # size and modification time, ns
_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    sha256: str
    size: int
    mtime_ns: int


class _Manifest(NamedTuple):
    files: dict[str, _Entry]
    number: str = ""  # of the push that made it, which begins with the name of the copy that did
    etag: str | None = None  # of its object; None where there is none yet

    def facts(self) -> dict[str, _Facts]:
        return {path: (one.size, one.mtime_ns) for path, one in self.files.items()}

    def json(self) -> str:
        return json.dumps({"version": 1, **self._asdict()})


class WorkingCopy:
    """The copy at `root`; `WorkingCopy.of` finds or begins one."""

    def __init__(self, root: Path, url: str, identity: str) -> None:
        self.root, self.url, self.state = root, url, root / ".remote"
        self.owner = f"{identity}@{socket.gethostname()}"
        self.store = ObjectStore(url)
        # That a pull was cut off: till it is whole no change here is our own.
        self._pulling = self.state / "pulling"

    @classmethod
    def of(cls, root: Path, begun_for: str | None = None) -> WorkingCopy | None:
        """The copy at `root`, begun for the home of that address where missing; None for a home on this disk alone."""
        path = root / ".remote" / "origin.json"
        if begun_for and not path.exists():
            write_json(path, {"url": begun_for, "endpoint": endpoint(), "copy": uuid.uuid4().hex})
        if not path.exists():
            return None
        told = json.loads(path.read_text())
        if told["endpoint"] != endpoint():
            raise StorageError(
                f"expected AWS_ENDPOINT_URL to be {told['endpoint'] or 'unset'}, where the copy in {root} comes from, "
                f"found {endpoint() or 'it unset'}; set it so, or give the s3:// address to begin another copy"
            )
        return cls(root, told["url"], told["copy"])

    def pull(self) -> int:
        """Make the copy what the store says; the number of files here that are yet to be pushed.

        Not while a process of this machine writes: then the copy is ahead. StorageError where both have changed.
        """
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):  # replaced by a push since the manifest was read
                return self._pull(self._agreed(), self._stored())
        raise StorageError(
            f"expected the files that the manifest of {self.url} names, found some missing; run the same again, and "
            "restore the bucket where that does not help"
        )

    def push(self, confirm: Callable[[], object], *, fence: bool = False) -> None:
        """Make the store what the copy is; `confirm` raises where this machine may not write any more.

        It is asked before the first object and before the manifest. With `fence` the manifest is replaced even if
        nothing changed: whoever wrote before has lost from then on, and what it put and never named is removed.
        """
        with FileLock(self.state / "push.lock"):
            before, local = self._agreed(), self._local()
            news = {path for path, _ in local.items() - before.facts().items()}
            gone = before.files.keys() - local.keys()
            if not (news or gone or fence):
                return
            confirm()
            put = _each(lambda path: (path, self._put(path, before.files.get(path))), news)
            read = {path: one for path, one in put if one}
            # Of a folder in which a file was replaced meanwhile, what was read may be of two states.
            torn = {_folder(path) for path, _ in local.items() ^ self._local().items() if not _is_log(path)}
            lost = {path for path in gone if _folder(path) not in torn}
            kept = {path: one for path, one in before.files.items() if path not in lost}
            fresh = {path: one for path, one in read.items() if _folder(path) not in torn}
            after = _Manifest(kept | fresh, f"{self.owner} {uuid.uuid4().hex}")
            confirm()
            try:
                etag = self.store.put(_MANIFEST, after.json().encode(), expect=before.etag)
            except MovedError:
                raise LostLeaseError(
                    f"expected {self.url} as this machine last saw it, found that another one has written to it; run "
                    "the same again, which goes on from there"
                ) from None
            self._remember(after._replace(etag=etag))
            known = self.store.keys("files") if fence else _keys(before.files) | _keys(read)
            self.store.delete(known - _keys(after.files))
            if news or gone:
                logger.info("%s: files pushed: %d, removed: %d.", self.url, len(news), len(gone))

    def describe(self) -> str:
        """Where it comes from and how much it is, as last agreed on."""
        sizes = [one.size for one in self._agreed().files.values()]
        return f"{self.url}, {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB"

    def _pull(self, before: _Manifest, after: _Manifest) -> int:
        if before.etag and not after.etag:
            raise StorageError(
                f"expected {_MANIFEST} in {self.url}, found none; restore the bucket, or delete {self.state} to fill "
                f"it anew from the copy in {self.root}"
            )
        local, stored = self._local(), after.facts()
        changed = {path for path, _ in local.items() - before.facts().items() - stored.items()}
        ours = set() if self._pulling.exists() else changed
        if ours and before.etag != after.etag and not after.number.startswith(self.owner):
            areas = ", ".join(sorted({path.split("/")[0] for path in ours}))
            raise StorageError(
                f"expected the copy {self.root} as it was last pushed, found {len(ours)} changes such as {min(ours)} "
                f"and that another machine has written to {self.url} since; two writers are not merged: move {areas} "
                "out of the copy and run the same again, which pulls what the store has"
            )
        if not ours:
            self._pulling.touch()
        for path in local.keys() - ours - stored.keys():
            self._remove(path)
        wanted = {path for path, _ in stored.items() - local.items()} - ours
        _each(lambda path: self._download(path, after.files[path]), wanted)
        self._remember(after)
        self._pulling.unlink(missing_ok=True)
        if wanted:
            megabytes = sum(after.files[path].size for path in wanted) / 1e6
            logger.info("%s: files pulled: %d, %.1f MB.", self.url, len(wanted), megabytes)
        return len(ours)

    def _local(self) -> dict[str, _Facts]:
        """Every file of the copy that belongs into the store; hidden ones are drafts and locks."""
        found = {}
        for area in AREAS:
            for place, folders, names in os.walk(self.root / area):
                folders[:] = [one for one in folders if not one.startswith(".")]
                for path in (Path(place, one) for one in names if not one.startswith(".")):
                    with suppress(FileNotFoundError):  # gone meanwhile
                        if S_ISREG((seen := path.lstat()).st_mode):
                            found[path.relative_to(self.root).as_posix()] = (seen.st_size, seen.st_mtime_ns)
        return found

    def _agreed(self) -> _Manifest:
        path = self.state / _MANIFEST
        return self._parsed(path.read_bytes()) if path.exists() else _Manifest({})

    def _stored(self) -> _Manifest:
        found = self.store.get(_MANIFEST)
        return self._parsed(found.content)._replace(etag=found.etag) if found else _Manifest({})

    def _parsed(self, content: bytes) -> _Manifest:
        told = json.loads(content)
        if told["version"] != 1:
            raise StorageError(
                f"expected a home of version 1 in {self.url}, found {told['version']}; install a newer kronos-nightly"
            )
        files = {path: _Entry(*one) for path, one in told["files"].items()}
        return _Manifest(files, told.get("number", ""), told.get("etag"))

    def _remember(self, manifest: _Manifest) -> None:
        with atomic_path(self.state / _MANIFEST) as temporary:
            temporary.write_text(manifest.json())

    def _put(self, path: str, known: _Entry | None) -> _Entry | None:
        """Put a file as it is now; None for one that is gone by now."""
        with suppress(FileNotFoundError), (self.root / path).open("rb") as file:
            seen = os.fstat(file.fileno())
            # A log is appended to: of it, as much as there was.
            source = io.BytesIO(file.read(seen.st_size)) if _is_log(path) else file
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            if known is None or known.sha256 != digest:
                source.seek(0)
                self.store.upload(_key(path, digest), source, seen.st_size)
            return _Entry(digest, seen.st_size, seen.st_mtime_ns)
        return None

    def _download(self, path: str, one: _Entry) -> None:
        with atomic_path(self.root / path) as temporary:
            self.store.download(_key(path, one.sha256), temporary)
            with temporary.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != one.sha256:
                raise StorageError(
                    f"expected {path} in {self.url} with the digest {one.sha256[:16]}, found {found[:16]}; restore "
                    "that object from a backup or a version of the bucket"
                )
            os.utime(temporary, ns=(one.mtime_ns, one.mtime_ns))

    def _remove(self, path: str) -> None:
        """Remove a file, and what folders then hold nothing but locks: an empty one would pass for a whole one."""
        (self.root / path).unlink()
        for folder in (self.root / path).parents[: path.count("/") - 1]:
            if all(one.name.startswith(".") for one in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


def _each(work: Callable[[str], _T], paths: Iterable[str]) -> list[_T]:
    """`work` of every path, several at a time; the first failure is raised once all have ended.

    Also for who reads meanwhile, weights come before the record that names them, and it before the champion. Logs
    come last: they are appended to, and no checkpoint may be ahead of them.
    """
    steps = sorted({(_step(path), path) for path in paths})
    with ThreadPoolExecutor(8) as pool:
        found = [list(pool.map(work, [path for at, path in steps if at == step])) for step in range(3)]
    return [one for step in found for one in step]


def _step(path: str) -> int:
    return 2 if path.endswith("/champion.json") or _is_log(path) else int(path.endswith(".json"))


def _is_log(path: str) -> bool:
    return path.endswith(".jsonl")


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _keys(files: dict[str, _Entry]) -> set[str]:
    return {_key(path, one.sha256) for path, one in files.items()}


def _key(path: str, sha256: str) -> str:
    """`files/lake/.../candles.<digest>.parquet`, so that other readers of Parquet know what it is."""
    plain = PurePosixPath(path)
    return f"files/{plain.parent}/{plain.stem}.{sha256[:16]}{plain.suffix}"
