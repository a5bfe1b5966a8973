"""What a Hub keeps: commits of files, named by the oids that git and LFS give their content."""

import hashlib
from dataclasses import dataclass
from typing import Any

__all__ = ["Repository", "Stored", "git_oid", "lfs_file"]


@dataclass(frozen=True)
class Stored:
    """A file of a commit, by the names the Hub gives its content."""

    oid: str  # git blob id of the file, or of its LFS pointer
    size: int
    sha256: str | None = None  # set for LFS files

    @property
    def blob(self) -> str:
        return self.sha256 or self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """As a listing shows it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


class Repository:
    """A linear history of commits with tags."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, Stored]] = {}
        self.messages: list[str] = []
        self.tags: dict[str, str] = {}
        self.add({}, "initial commit")

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def add(self, files: dict[str, Stored], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        name = self.head if revision == "main" else self.tags.get(revision, revision)
        return name if name in self.commits else None


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_file(sha256: str, size: int) -> Stored:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Stored(git_oid(pointer.encode()), size, sha256)
