"""Publishing a model folder: as a folder of a local hub, or as one commit on the Hugging Face Hub.

A token is only ever handed to huggingface_hub; no message or log line of this module can contain it.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import CommitOperationAdd

from kronos_model.errors import ModelError
from kronos_model.files import (
    CALIBRATION_FILE,
    METADATA_FILE,
    MODEL_FILES,
    POSTPROCESS_FILE,
    replace_directory,
)
from kronos_model.hub_repository import FileDigest, Remote, file_digests
from kronos_model.local_hub import LocalRepository

__all__ = [
    "CHAMPION",
    "ChampionTags",
    "Published",
    "TaggedRepository",
    "assemble_repository",
    "champion_tags",
    "check_token",
    "publish_local",
    "publish_to_hub",
    "tag_champion",
]

CHAMPION = "champion"
CARD_FILE = "README.md"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where a folder can be read from now on."""

    repo_id: str
    revision: str
    url: str
    uploaded: bool
    """False where this revision was there already, and for a local hub."""


def assemble_repository(
    model_folder: Path, destination: Path, *, card: str, pictures: Mapping[str, Path]
) -> Path:
    """Lay out a repository in one step: the model's files, the card and the pictures, by their name in it."""
    sources = {name: model_folder / name for name in (*MODEL_FILES, METADATA_FILE)}
    for name in (CALIBRATION_FILE, POSTPROCESS_FILE):
        if (model_folder / name).exists():
            sources[name] = model_folder / name
    for name, picture in pictures.items():
        if name in (*sources, CARD_FILE) or Path(name).name != name:
            raise ValueError(f"a picture needs a plain file name of its own, found {name!r}; rename it")
        sources[name] = picture
    for source in sources.values():
        if not source.is_file():
            raise ModelError(f"{source} is missing, so nothing can be published; train or draw it again")
    with replace_directory(destination) as folder:
        for name, source in sources.items():
            shutil.copyfile(source, folder / name)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return destination


def publish_local(folder: Path, hub_root: Path, name: str, *, tag: str) -> Published:
    """Put a repository under the local hub, from where upstream's classes load it; nothing is uploaded.

    The revisions before it stay, each with its tags.
    """
    repository = LocalRepository(hub_root, name)
    revision = repository.write(folder, _digests_of(folder))
    repository.set_tag(tag, revision)
    logger.info("%s holds revision %s; nothing was uploaded", repository.folder, revision)
    return Published(
        repo_id=name, revision=revision, url=repository.folder.resolve().as_uri(), uploaded=False
    )


def publish_to_hub(
    folder: Path,
    repo_id: str,
    *,
    token: str,
    private: bool,
    tag: str,
    message: str,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Published:
    """Make a Hub repository hold these files, by at most one commit, and download them again to compare.

    Nothing is uploaded where the head holds them already; files that the folder does not have stay. A commit
    of somebody else in between is refused, never overwritten. `tag` ends up at the revision, moved if it
    existed; a revision is tagged once its download has been compared. May be repeated safely.
    """
    digests = _digests_of(folder)
    remote = Remote(repo_id, token=token, endpoint=endpoint, sleep=sleep)
    head = remote.ensure(private=private)
    uploaded = not remote.attempt(lambda: remote.holds(head, digests))
    revision = _commit(remote, folder, digests, head=head, message=message) if uploaded else head
    compared = not uploaded and revision in remote.tags().values()
    if not compared and remote.downloaded(revision, digests, folder.parent) != digests:
        raise ModelError(
            f"{repo_id} does not hold what was uploaded at revision {revision}; do not use it, publish again"
        )
    remote.set_tag(tag, revision)
    logger.info("%s at %s", "published " + repo_id if uploaded else repo_id + " is up to date", revision)
    url = f"{remote.api.endpoint}/{repo_id}/tree/{revision}"
    return Published(repo_id=repo_id, revision=revision, url=url, uploaded=uploaded)


def _commit(
    remote: Remote, folder: Path, digests: Mapping[str, FileDigest], *, head: str, message: str
) -> str:
    """The revision that holds the folder, made on top of `head` and of nothing else."""

    def once() -> str:
        current = str(remote.api.model_info(remote.repo_id).sha)
        if current != head:
            if remote.holds(current, digests):
                return current  # the last attempt arrived, only its answer was lost
            raise ModelError(remote.changed())
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in digests
        ]
        made = remote.api.create_commit(
            remote.repo_id, operations, commit_message=message, parent_commit=head
        )
        return str(made.oid)

    return remote.attempt(once)


class TaggedRepository(Protocol):
    """What tagging asks of a repository: `Remote` on the Hub, `LocalRepository` in the local hub."""

    repo_id: str

    def check_revision(self, revision: str) -> None: ...
    def tags(self) -> dict[str, str]: ...
    def set_tag(self, tag: str, revision: str | None) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionTags:
    """The revisions of a tokenizer's and a predictor's repository that are tagged `champion`; None is no tag."""

    tokenizer: str | None
    predictor: str | None

    def __str__(self) -> str:
        return " and ".join(
            f"{part} {'without one' if revision is None else 'at ' + revision[:12]}"
            for part, revision in (("tokenizer", self.tokenizer), ("predictor", self.predictor))
        )


def champion_tags(tokenizer: TaggedRepository, predictor: TaggedRepository) -> ChampionTags:
    """Where the tag `champion` is now.

    Compare it with where it should be; where it is not, as after a crash between two moves, `tag_champion` with
    that is the repair.
    """
    return ChampionTags(tokenizer=tokenizer.tags().get(CHAMPION), predictor=predictor.tags().get(CHAMPION))


def tag_champion(tokenizer: TaggedRepository, predictor: TaggedRepository, revisions: ChampionTags) -> None:
    """Move the tag `champion` to `revisions` of both repositories, or of neither.

    Two Nones take it off both. May be repeated safely: what is right already is left alone, whatever an earlier,
    interrupted move left. On a ModelError the tags are back where they were, or its sentence says where they are.
    """
    if (revisions.tokenizer is None) != (revisions.predictor is None):
        raise ValueError(f"expected a revision for both repositories or for neither, found {revisions}")
    before = champion_tags(tokenizer, predictor)
    if before == revisions:
        return
    repositories = (tokenizer, predictor)
    wanted = (revisions.tokenizer, revisions.predictor)
    for repository, revision in zip(repositories, wanted, strict=True):
        if revision is not None:
            repository.check_revision(revision)
    try:
        for repository, revision in zip(repositories, wanted, strict=True):
            repository.set_tag(CHAMPION, revision)
    except ModelError as error:
        raise ModelError(f"{error}; {_put_back(tokenizer, predictor, before)}") from None
    except BaseException:  # Ctrl-C, a cancelled run
        logger.warning("the champion's tag was not moved: %s", _put_back(tokenizer, predictor, before))
        raise
    logger.info("tagged %s: %s of %s and %s", CHAMPION, revisions, tokenizer.repo_id, predictor.repo_id)


def _put_back(tokenizer: TaggedRepository, predictor: TaggedRepository, before: ChampionTags) -> str:
    """Undo a move; what became of it, in words."""
    failed = []
    for repository, revision in ((predictor, before.predictor), (tokenizer, before.tokenizer)):
        try:
            repository.set_tag(CHAMPION, revision)
        except ModelError as error:
            failed.append(str(error))
    if failed:
        return (
            f"the tag {CHAMPION} could not be put back either ({'; '.join(failed)}), it was before: {before}; "
            "`kronos doctor --repair` or the next night puts it right"
        )
    return f"the tag {CHAMPION} stays where it was: {before}"


def check_token(token: str, endpoint: str | None = None, *, namespace: str = "") -> str:
    """The namespace this token publishes to, asked before hours of training are spent.

    The user's own where none is given. ModelError where the token is refused, can only read, or belongs to
    nobody in the namespace.
    """
    remote = Remote("", token=token, endpoint=endpoint)
    told = remote.attempt(lambda: remote.api.whoami())
    name = str(told["name"])
    owner = namespace or name
    if owner not in (name, *(one["name"] for one in told.get("orgs", []))):
        raise ModelError(
            f"the Hub's token belongs to {name}, which is not a member of {owner}; use a token of a "
            f"member, or set namespace={name}"
        )
    if told.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ModelError(
            f"the Hub's token of {name} can only read; create one with write access and set HF_TOKEN"
        )
    return owner


def _digests_of(folder: Path) -> dict[str, FileDigest]:
    digests = file_digests(folder) if folder.is_dir() else {}
    missing = [name for name in (*MODEL_FILES, CARD_FILE) if name not in digests]
    if missing:
        raise ModelError(f"{folder} is not a repository, {' and '.join(missing)} missing; assemble it first")
    return digests
