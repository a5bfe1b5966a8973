"""A working copy on this machine's disk of a home on object storage.

In the bucket, below the home's prefix:

    files/...        every file under its path, its name extended by its digest: never changed, only added and removed
    manifest.json    which of them the home consists of; replaced by a conditional put, and last
    lease.json       who may write (storage.remote_lease)

So a push that is cut off leaves the home as it was, and one put decides for champion, ledger and weights alike.
The copy keeps the manifest that it last agreed on with the store: what differs from it was changed here, what the
store's present one says otherwise was changed elsewhere.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from filelock import FileLock

from storage.atomic import atomic_path, write_json
from storage.errors import StorageError
from storage.remote_bucket import Bucket, MovedError, endpoint
from storage.remote_lease import LostLeaseError

__all__ = ["AREAS", "WorkingCopy"]

AREAS = ("lake", "datasets", "models", "forecasts", "jobs", "hub", "reports")

_STATE = ".remote"
_MANIFEST = "manifest.json"
_FILES = "files"
_WORKERS = 8
_TRIES = 5
_BLOCK = 8 << 20
_SMALL = 16 << 20
# Folders of which one machine's files and another's make no whole; everywhere else a file stands for itself.
_WHOLES = {"lake": 4, "jobs": 2}

_Facts = tuple[int, int]  # size and modification time, ns

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    sha256: str
    size: int
    mtime_ns: int

    @property
    def facts(self) -> _Facts:
        return self.size, self.mtime_ns


@dataclass(frozen=True, slots=True)
class _Manifest:
    files: dict[str, _Entry] = field(default_factory=dict)
    etag: str | None = None  # of its object; None where there is none yet

    def keys(self) -> set[str]:
        return {_key(path, one.sha256) for path, one in self.files.items()}


class WorkingCopy:
    """The copy at `root`; `WorkingCopy.of` finds one, `WorkingCopy.begin` makes one."""

    def __init__(self, root: Path, url: str, identity: str) -> None:
        self.root, self.url = root, url
        self.owner = f"{identity}@{socket.gethostname()}"
        self.state = root / _STATE
        self.bucket = Bucket(url)

    @classmethod
    def begin(cls, root: Path, url: str) -> None:
        """Make the folder at `root` a copy of the home at `url`; it is filled by the first pull."""
        if not (root / _STATE / "origin.json").exists():
            write_json(
                root / _STATE / "origin.json", {"url": url, "endpoint": endpoint(), "copy": uuid.uuid4().hex}
            )

    @classmethod
    def of(cls, root: Path) -> WorkingCopy | None:
        """The copy at `root`; None for a home that is on this disk alone."""
        path = root / _STATE / "origin.json"
        if not path.exists():
            return None
        told = json.loads(path.read_text())
        if told["endpoint"] != endpoint():
            raise StorageError(
                f"expected AWS_ENDPOINT_URL to be {told['endpoint'] or 'unset'}, where the copy in {root} comes from, "
                f"found {endpoint() or 'it unset'}; set it so, or give the s3:// address to begin another copy"
            )
        return cls(root, told["url"], told["copy"])

    def pull(self) -> None:
        """Make the copy what the store says, but for what was changed here alone and is yet to be pushed.

        Not while a process of this machine writes: then the copy is ahead.
        """
        for _ in range(_TRIES):
            try:
                return self._pull()
            except FileNotFoundError:  # replaced by a push since the manifest was read
                logger.info("%s is being written to; looking again.", self.url)
        raise StorageError(
            f"expected the files that the manifest of {self.url} names, found some missing; run the same again, and "
            "restore the bucket where that does not help"
        )

    def push(self, confirm: Callable[[], object], *, fence: bool = False) -> None:
        """Make the store what the copy is; `confirm` raises where this machine may not write any more.

        It is asked before the first object and before the manifest. With `fence` the manifest is replaced even if
        nothing changed: whoever wrote before has lost from then on.
        """
        with FileLock(self.state / "push.lock"):
            before, local = self._agreed(), self._local()
            news = [path for path, facts in local.items() if _facts(before, path) != facts]
            gone = before.files.keys() - local.keys()
            if not (news or gone or fence):
                return
            confirm()
            logs = [path for path in news if path.endswith(".jsonl")]
            read = self._upload_all([path for path in news if path not in logs], before)
            torn = _changing(local, self._local())
            read |= self._upload_all(logs, before)  # appended to, so later: no checkpoint is ahead of them
            files = before.files | {path: one for path, one in read.items() if _folder(path) not in torn}
            for path in gone:
                if _folder(path) not in torn:
                    del files[path]
            confirm()
            after = _Manifest(files, self._replace_manifest(before, files))
            self._remember(after)
            self.bucket.delete((before.keys() | _Manifest(read).keys()) - after.keys())
            if news or gone:
                logger.info("%s: files pushed: %d, removed: %d.", self.url, len(news), len(gone))

    def sweep(self) -> None:
        """Remove objects that a dead machine put and never named."""
        self.bucket.delete(set(self.bucket.keys(_FILES)) - self._agreed().keys())

    def totals(self) -> tuple[int, int]:
        """Files and bytes of the home, as last agreed on."""
        files = self._agreed().files.values()
        return len(files), sum(one.size for one in files)

    def _pull(self) -> None:
        before, after, local = self._agreed(), self._stored(), self._local()
        if before.etag and not after.etag:
            raise StorageError(
                f"expected {_MANIFEST} in {self.url}, found none; restore the bucket, or delete {self.state} to fill "
                f"it anew from the copy in {self.root}"
            )
        ours = {path for path, one in local.items() if one not in (_facts(before, path), _facts(after, path))}
        theirs = {path for path in before.files.keys() | after.files.keys() if _differ(before, after, path)}
        contested = set(map(_whole, ours)) & set(map(_whole, theirs))
        lost = {path for path in ours if _whole(path) in contested}
        for path in lost:
            self._set_aside(path)
        for path in (theirs - after.files.keys()) & (local.keys() - ours):
            self._remove(path)
        wanted = {path for path, one in after.files.items() if local.get(path) != one.facts} - ours | lost
        wanted &= after.files.keys()
        for step in range(3):  # also for who reads meanwhile, weights come before the record that names them
            paths = sorted(path for path in wanted if _step(path) == step)
            _each(lambda path: self._download(path, after.files[path]), paths)
        self._remember(after)
        if lost:
            logger.warning(
                "%s: %d files had been changed on another machine as well, whose word counts; those of this one are "
                "in %s.", self.url, len(lost), self.state / "aside",
            )  # fmt: skip
        if wanted:
            megabytes = sum(after.files[path].size for path in wanted) / 1e6
            logger.info("%s: files pulled: %d, %.1f MB.", self.url, len(wanted), megabytes)

    def _local(self) -> dict[str, _Facts]:
        """Every file of the copy that belongs into the store; hidden ones are drafts and locks."""
        return {
            str(PurePosixPath(path.relative_to(self.root))): facts
            for area in AREAS
            for path, facts in _scan(self.root / area)
        }

    def _agreed(self) -> _Manifest:
        path = self.state / _MANIFEST
        if not path.exists():
            return _Manifest()
        told = json.loads(path.read_text())
        return _Manifest(_entries(told), told["etag"])

    def _remember(self, manifest: _Manifest) -> None:
        told = _told(manifest.files) | {"etag": manifest.etag}
        with atomic_path(self.state / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(told))

    def _stored(self) -> _Manifest:
        found = self.bucket.get(_MANIFEST)
        if found is None:
            return _Manifest()
        told = json.loads(found.content)
        if told["version"] != 1:
            raise StorageError(
                f"expected a home of version 1 in {self.url}, found {told['version']}; install a newer kronos-nightly"
            )
        return _Manifest(_entries(told), found.etag)

    def _replace_manifest(self, before: _Manifest, files: dict[str, _Entry]) -> str:
        content = json.dumps(_told(files) | {"number": uuid.uuid4().hex}).encode()
        try:
            return self.bucket.put(_MANIFEST, content, expect=before.etag)
        except MovedError:
            now = self.bucket.get(_MANIFEST)  # perhaps it is ours, and the answer got lost on its way
            if now is not None and now.content == content:
                return now.etag
            raise LostLeaseError(
                f"expected {self.url} as this machine last saw it, found that another one has written to it; run the "
                "same again, which goes on from there"
            ) from None

    def _upload_all(self, paths: list[str], before: _Manifest) -> dict[str, _Entry]:
        """Put files as they are now; without those that are gone or change meanwhile: the next push comes."""
        found = zip(paths, _each(lambda path: self._upload(path, before), paths), strict=True)
        return {path: one for path, one in found if one is not None}

    def _upload(self, path: str, before: _Manifest) -> _Entry | None:
        try:
            with (self.root / path).open("rb") as file:
                size, mtime_ns = _facts_of(os.fstat(file.fileno()))
                source: BinaryIO = file
                if size <= _SMALL:  # read once: its first lines, if it is being appended to
                    content = file.read()
                    source, size = io.BytesIO(content), len(content)
                digest = _sha256(source)
                known = before.files.get(path)
                if known is None or known.sha256 != digest:
                    source.seek(0)
                    self.bucket.upload(_key(path, digest), source, size)
                changed = size > _SMALL and _facts_of(os.fstat(file.fileno())) != (size, mtime_ns)
        except FileNotFoundError:
            return None
        return None if changed else _Entry(digest, size, mtime_ns)

    def _download(self, path: str, one: _Entry) -> None:
        target = self.root / path
        with atomic_path(target) as temporary:
            found = self.bucket.download(_key(path, one.sha256), temporary)
            if found != one.sha256:
                raise StorageError(
                    f"expected {path} in {self.url} with the digest {one.sha256[:16]}, found {found[:16]}; restore "
                    "that object from a backup or a version of the bucket"
                )
            os.utime(temporary, ns=(one.mtime_ns, one.mtime_ns))

    def _set_aside(self, path: str) -> None:
        target = self.state / "aside" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).replace(target)

    def _remove(self, path: str) -> None:
        """Remove a file, and what folders then hold nothing but locks: an empty one would pass for a whole one."""
        (self.root / path).unlink()
        for folder in PurePosixPath(path).parents[:-2]:
            if not any(_scan(self.root / folder)):
                shutil.rmtree(self.root / folder, ignore_errors=True)


def _each(work: Callable[[str], Any], paths: list[str]) -> list[Any]:
    """`work` of every path, several at a time, in order; the first failure is raised once all have ended."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(work, paths))


def _scan(folder: Path) -> Iterator[tuple[Path, _Facts]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # never made, or gone since
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _scan(Path(entry.path))
            continue
        try:
            yield Path(entry.path), _facts_of(entry.stat())
        except FileNotFoundError:
            continue


def _facts_of(found: os.stat_result) -> _Facts:
    return found.st_size, found.st_mtime_ns


def _facts(manifest: _Manifest, path: str) -> _Facts | None:
    return manifest.files[path].facts if path in manifest.files else None


def _differ(one: _Manifest, other: _Manifest, path: str) -> bool:
    found, expected = one.files.get(path), other.files.get(path)
    return (found and found.sha256) != (expected and expected.sha256)


def _step(path: str) -> int:
    return 2 if path.endswith("/champion.json") else int(path.endswith(".json"))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _changing(earlier: dict[str, _Facts], later: dict[str, _Facts]) -> set[str]:
    """Folders of which a file was replaced in between: what was read of them may be of two states."""
    paths = {path for path in earlier.keys() | later.keys() if earlier.get(path) != later.get(path)}
    return {_folder(path) for path in paths if not path.endswith(".jsonl")}


def _whole(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[: _WHOLES.get(parts[0], len(parts))])


def _key(path: str, sha256: str) -> str:
    """`files/lake/.../candles.<digest>.parquet`, so that other readers of Parquet know what it is."""
    plain = PurePosixPath(path)
    return f"{_FILES}/{plain.parent}/{plain.stem}.{sha256[:16]}{plain.suffix}"


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _told(files: dict[str, _Entry]) -> dict[str, Any]:
    return {"version": 1, "files": {path: astuple(one) for path, one in sorted(files.items())}}


def _entries(told: dict[str, Any]) -> dict[str, _Entry]:
    return {path: _Entry(*one) for path, one in told["files"].items()}
