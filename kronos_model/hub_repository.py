"""One repository on the Hugging Face Hub, with retries and with errors that a user can act upon."""

import errno
import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of whichever client it has
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from kronos_model.errors import ModelError

__all__ = ["FileDigest", "Remote", "file_digests", "folder_revision"]

T = TypeVar("T")
_ATTEMPTS = 4
_WAIT = wait_chain(wait_fixed(1), wait_fixed(4), wait_fixed(15))
_LONGEST_WAIT_S = 310.0  # the Hub counts requests over five minutes
# An upload that fails reaches us as a RuntimeError around the real one, a broken answer as a Value- or KeyError.
_FAILURES = (HTTPError, OSError, RuntimeError, ValueError, KeyError)
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDigest:
    """A file's content by the two names the Hub may give it."""

    sha256: str  # of the bytes: LFS files
    blob_id: str  # of the git blob: all others


def file_digests(folder: Path) -> dict[str, FileDigest]:
    """Digest of every file below the folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def _digest(path: Path) -> FileDigest:
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    return FileDigest(sha256=sha256.hexdigest(), blob_id=blob.hexdigest())


def folder_revision(digests: Mapping[str, FileDigest]) -> str:
    """40 hex digits that name this content, as a commit would."""
    lines = "".join(f"{name}\0{digest.sha256}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


class TagNotMovedError(ConnectionError):
    """The Hub said yes, but the tag is not there."""


@dataclass(kw_only=True)
class _Failure(Exception):  # noqa: N818, it says what is known of one
    """What is known of a failed call; `said` holds no token."""

    status: int | None
    said: str
    wait_s: float
    passing: bool


class Remote:
    """A model repository at an endpoint, seen with a token."""

    def __init__(
        self,
        repo_id: str,
        *,
        token: str,
        endpoint: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not token:
            raise ModelError(
                "publishing to the Hub needs a token, found none; set HF_TOKEN or the Prefect Secret block that "
                "publish.token_block names, or publish locally"
            )
        self.repo_id = repo_id
        self.api = HfApi(endpoint=endpoint, token=token)
        self._token = token
        self._sleep = sleep

    def ensure(self, *, private: bool) -> str:
        """Create the repository if it is missing; its head. A public one does not pass for private."""
        self.attempt(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
        info = self.attempt(lambda: self.api.model_info(self.repo_id))
        if private and not info.private:
            raise ModelError(
                f"{self.repo_id} is public, but a private one was asked for; make it private on the Hub, "
                "or set private=False"
            )
        return str(info.sha)

    def holds(self, revision: str, digests: Mapping[str, FileDigest]) -> bool:
        """Whether it has exactly this content under these names: no download, and asked once, without retries."""
        listed = self.api.get_paths_info(self.repo_id, list(digests), revision=revision)
        files = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
        return files.keys() == digests.keys() and all(
            entry.lfs.sha256 == digests[name].sha256 if entry.lfs else entry.blob_id == digests[name].blob_id
            for name, entry in files.items()
        )

    def downloaded(self, revision: str, names: Iterable[str], scratch: Path) -> dict[str, FileDigest]:
        """Digests of these files as anybody gets them at that revision; they lie in `scratch` for a while."""
        digests = {}
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            for name in names:
                path = self.attempt(
                    partial(self.api.hf_hub_download, self.repo_id, name, revision=revision, local_dir=folder)
                )
                digests[name] = _digest(Path(path))
                Path(path).unlink()
        return digests

    def check_revision(self, revision: str) -> None:
        """ModelError where there is no such revision."""
        self.attempt(lambda: self.api.model_info(self.repo_id, revision=revision))

    def tags(self) -> dict[str, str]:
        """Revisions by tag."""
        return self.attempt(self._tags_now)

    def set_tag(self, tag: str, revision: str | None) -> None:
        """Make the tag point at the revision, or remove it.

        The Hub cannot move a tag: one that points elsewhere is deleted first. Each attempt looks anew, so an
        answer that was lost does not matter.
        """

        def once() -> None:
            target = self._tags_now().get(tag)
            if target == revision:
                return
            if target is not None:
                self.api.delete_tag(self.repo_id, tag=tag)
            if revision is not None:
                self.api.create_tag(self.repo_id, tag=tag, revision=revision)
            if self._tags_now().get(tag) != revision:
                raise TagNotMovedError

        self.attempt(once)

    def _tags_now(self) -> dict[str, str]:
        refs = self.api.list_repo_refs(self.repo_id)
        return {ref.name: ref.target_commit for ref in refs.tags}

    def attempt(self, call: Callable[[], T]) -> T:
        """The answer of `call`, asked again while the Hub is busy or away; ModelError if it stays so."""
        retrying = Retrying(
            sleep=self._sleep,
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait_s,
            retry=retry_if_exception(lambda error: isinstance(error, _Failure) and error.passing),
            before_sleep=_tell,
            reraise=True,
        )
        try:
            answer: T = retrying(self._once, call)
        except _Failure as failure:
            raise ModelError(self._sentence(failure)) from None
        return answer

    def _once(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except _FAILURES as error:
            failure = _examine(error, token=self._token)
        # Raised outside the except block: the client's own error, which may quote headers, is not chained.
        raise failure

    def changed(self) -> str:
        """The sentence about a concurrent writer."""
        return (
            f"{self.repo_id} was changed by somebody else in the meantime, so nothing was published; publish "
            "again, and let one machine at a time publish to it"
        )

    def _sentence(self, failure: _Failure) -> str:
        what = f"publishing {self.repo_id}" if self.repo_id else "asking for the token's owner"
        if failure.status == 401:  # what a repository answers that the token cannot see, too
            remedy = "the token is not accepted; create one with write access on the Hub and set HF_TOKEN"
        elif failure.status == 403:
            remedy = "the token may not do this; give it write access there, or change the namespace"
        elif failure.status in (409, 412):
            return self.changed()
        elif failure.status == 404:
            remedy = "it was not found; check the name, and that the token may see it"
        elif failure.status is None:
            remedy = "it cannot be reached; check the network and HF_ENDPOINT, then publish again"
        elif failure.passing:
            remedy = f"it stayed busy over {_ATTEMPTS} attempts; publish again later"
        else:
            remedy = "the request was refused; correct what it names"
        return f"{what} at {self.api.endpoint} failed ({failure.said}): {remedy}"


def _failure_of(state: RetryCallState) -> _Failure:
    assert state.outcome is not None  # tenacity asks after an attempt
    return cast(_Failure, state.outcome.exception())


def _wait_s(state: RetryCallState) -> float:
    """At least as long as the Hub asks for, within bounds."""
    return min(max(_WAIT(state), _failure_of(state).wait_s), _LONGEST_WAIT_S)


def _tell(state: RetryCallState) -> None:
    said = _failure_of(state).said
    logger.warning("the Hub answered %s; asking again in %.0f s", said, state.upcoming_sleep)


def _examine(error: Exception, *, token: str) -> _Failure:
    """Sort a failure of huggingface_hub: worth another attempt or not, and in whose words."""
    cause = error
    while isinstance(cause, RuntimeError | LocalEntryNotFoundError) and isinstance(
        cause.__cause__, Exception
    ):
        cause = cause.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        status = cause.response.status_code
        said = _hidden(f"HTTP {status} {cause.server_message or ''}", token)
        passing = status == 429 or status >= 500
        return _Failure(status=status, said=said, wait_s=_retry_after(cause), passing=passing)
    broken_answer = isinstance(cause, json.JSONDecodeError | KeyError)
    own_disk = isinstance(cause, OSError) and cause.errno in _OWN_DISK
    if (isinstance(cause, HTTPError | OSError) and not own_disk) or broken_answer:
        said = "an answer without the JSON it should have" if broken_answer else type(cause).__name__
        passing = not isinstance(cause, OfflineModeIsEnabled)
        return _Failure(status=None, said=said, wait_s=0.0, passing=passing)
    return _Failure(status=400, said=_hidden(str(cause), token), wait_s=0.0, passing=False)


def _hidden(said: str, token: str) -> str:
    """What was said on one line, without the token."""
    return " ".join(said.split()).replace(token, "***")[:200]


def _retry_after(error: HfHubHTTPError) -> float:
    """Seconds the server asks for, by Retry-After or by its RateLimit header (`"api";r=0;t=55`)."""
    told = error.response.headers.get("Retry-After", "")
    if not told.isdigit():
        found = re.search(r"\bt=(\d+)", error.response.headers.get("RateLimit", ""))
        told = found[1] if found and error.response.status_code == 429 else ""
    return float(told) if told else 0.0
