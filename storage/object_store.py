"""A store that speaks S3, below one prefix of a bucket: every failure is one sentence.

Endpoint, region and credentials are what the AWS_* variables say; none of them is ever repeated in a message.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

from storage.errors import StorageError

__all__ = ["Found", "MovedError", "ObjectStore", "endpoint", "s3_url"]

# `Path`, and so the command line, folds the two slashes into one.
_URL = re.compile(r"s3:/{1,2}(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*?))?/*")
_CHUNK = 8 << 20
_SINGLE = 64 << 20  # bytes; what is larger is put in parts
_CLIENT = {"connect_timeout": "3s", "read_timeout": "30s", "timeout": "10m"}
_CAUSES = {  # what the store's answer contains: what was found, and what to do about it
    "NoSuchBucket": "no such bucket; create it or correct the home's URL",
    # Who has credentials nowhere ends up asking the machine itself for its role.
    "/latest/": "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a role",
    "status code: 40[13]": "that it refuses ({codes}); check the AWS_* variables and the rights on the bucket",
    "status code: ": "a failure ({codes}); run the same again: nothing is half-written",
    "": "no answer; check AWS_ENDPOINT_URL, AWS_REGION and the network, then run the same again",
}


class MovedError(Exception):
    """A conditional put found another object than it expected; nothing was written."""


class Found(NamedTuple):
    """An object: its bytes, its version and the store's time of it."""

    content: bytes
    etag: str
    modified: datetime


def s3_url(text: str) -> str | None:
    """`s3://bucket/prefix` in one spelling; None for what is a path. A broken one is a StorageError."""
    if not text.startswith("s3:"):
        return None
    match = _URL.fullmatch(text)
    if match is None:
        raise StorageError(f"expected a home such as s3://bucket/prefix, found {text!r}; correct it")
    return "s3://" + "/".join(filter(None, (match["bucket"], match["prefix"])))


def endpoint() -> str:
    """Where the store is: AWS_ENDPOINT_URL, without a login, which no S3 asks for; empty for Amazon's."""
    told = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return re.sub(r"//[^/@]*@", "//", told).rstrip("/")


class ObjectStore:
    """The objects below the prefix of `url`. A put is whole or it did not happen; threads may share one."""

    def __init__(self, url: str) -> None:
        try:
            from obstore.store import S3Store  # an extra: who has a home on disk does not need it
        except ImportError as error:
            raise StorageError(
                f"expected the library obstore for {url}, found it missing; `pip install 'kronos-nightly[s3]'`"
            ) from error
        self.url, place = url, endpoint()
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            config={"endpoint": place} if place else None,
            client_options={"allow_http": place.startswith("http://"), **_CLIENT},  # type: ignore[arg-type]
            retry_config={"max_retries": 4, "retry_timeout": timedelta(minutes=2)},
        )

    def get(self, key: str) -> Found | None:
        """An object; None where there is none."""
        try:
            with self._asking():
                result = self._store.get(key)
                return Found(bytes(result.bytes()), result.meta["e_tag"] or "", result.meta["last_modified"])
        except FileNotFoundError:
            return None

    def put(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write an object where there still is the version `expect`, or none (None); its new version.

        Raises MovedError where somebody else was there first.
        """
        try:
            with self._asking():
                return (
                    self._store.put(key, content, mode={"e_tag": expect} if expect else "create")["e_tag"]
                    or ""
                )
        except (MovedError, FileNotFoundError) as error:
            now = self.get(key)  # perhaps it is ours, and the answer got lost on its way
            if now is None or now.content != content:
                raise MovedError(key) from error
            return now.etag

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        """Write a file, whatever was there."""
        with self._asking():
            self._store.put(key, file, use_multipart=size > _SINGLE, chunk_size=_CHUNK)

    def download(self, key: str, path: Path) -> None:
        """Write an object's bytes to `path`. FileNotFoundError where there is none."""
        with self._asking(), path.open("wb") as file:
            for chunk in self._store.get(key).stream(min_chunk_size=_CHUNK):
                file.write(chunk)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is none to delete."""
        if doomed := sorted(keys):
            with self._asking():
                self._store.delete(doomed)

    def keys(self, prefix: str) -> set[str]:
        """The names of all objects below a prefix."""
        with self._asking():
            return {one["path"] for page in self._store.list(prefix, chunk_size=1000) for one in page}

    def now(self) -> datetime:
        """The store's own clock: when it says that something written now was written."""
        with self._asking():
            self._store.put("clock", uuid.uuid4().bytes)
            return self._store.head("clock")["last_modified"]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """StorageError for what the store refuses, MovedError for a condition, FileNotFoundError for no object."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise MovedError(str(error)) from error
        except (BaseError, FileNotFoundError) as error:
            said = str(error)
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in said:
                raise
            codes = " ".join(dict.fromkeys(re.findall(r"(?:status code: |<Code>)(\w+)", said)))
            found = next(told for sign, told in _CAUSES.items() if re.search(sign, said)).format(codes=codes)
            raise StorageError(
                f"expected {endpoint() or 'Amazon S3'} to serve {self.url}, found {found}"
            ) from None  # its cause repeats the request
