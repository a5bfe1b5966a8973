"""A repository of the local hub: a folder that upstream's classes load, the revisions before it, and tags.

`hub/NAME/` is the newest revision. `hub/.revisions/NAME/` holds each one under its digest, and `tags.json`.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kronos_model.errors import ModelError
from kronos_model.files import read_json, replace_directory, write_json
from kronos_model.hub_repository import FileDigest, file_digests, folder_revision

__all__ = ["LocalRepository"]


class LocalRepository:
    """A model repository under the local hub; it has tags as one on the Hub has."""

    def __init__(self, hub_root: Path, name: str) -> None:
        self.repo_id = name
        self.folder = hub_root / name
        self._revisions = hub_root / ".revisions" / name
        self._tags = self._revisions / "tags.json"

    def revision_folder(self, revision: str) -> Path:
        """Where the files of a revision lie; ModelError where the local hub has no such revision."""
        folder = self._revisions / revision
        if not folder.is_dir():
            raise ModelError(
                f"the local hub has no revision {revision} of {self.repo_id} in {self._revisions}; publish it again"
            )
        return folder

    def check_revision(self, revision: str) -> None:
        """ModelError where there is no such revision."""
        self.revision_folder(revision)

    def write(self, source: Path, digests: Mapping[str, FileDigest]) -> str:
        """Make these files the newest revision; its name. What is there already is not written again."""
        revision = folder_revision(digests)
        kept = self._revisions / revision
        if not _holds(kept, digests):
            with replace_directory(kept) as copy:
                shutil.copytree(source, copy, dirs_exist_ok=True)
            if not _holds(kept, digests):
                raise ModelError(
                    f"{kept} does not hold what was written to it; check the disk, publish again"
                )
        if not _holds(self.folder, digests):
            with replace_directory(self.folder) as copy:
                shutil.copytree(kept, copy, dirs_exist_ok=True, copy_function=_link)
        return revision

    def tags(self) -> dict[str, str]:
        """Revisions by tag."""
        told = read_json(self._tags) if self._tags.exists() else {}
        return {name: str(revision) for name, revision in told.items()}

    def set_tag(self, tag: str, revision: str | None) -> None:
        """Make the tag point at the revision, or remove it."""
        tags = self.tags()
        wanted = {name: old for name, old in tags.items() if name != tag}
        if revision is not None:
            self.check_revision(revision)
            wanted[tag] = revision
        if wanted != tags:
            write_json(self._tags, wanted)


def _holds(folder: Path, digests: Mapping[str, FileDigest]) -> bool:
    return folder.is_dir() and file_digests(folder) == digests


def _link(source: str, target: str) -> str:
    """A second name for the same bytes; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
