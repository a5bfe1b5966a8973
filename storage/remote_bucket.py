"""A bucket of S3, or of what speaks like it, below one prefix: every failure is one sentence.

Endpoint, region and credentials are what the AWS_* variables say; none of them is ever repeated in a message.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage.errors import StorageError

if TYPE_CHECKING:  # an extra: who has a home on disk does not need it
    from obstore.store import S3Store

__all__ = ["Bucket", "Found", "MovedError", "endpoint", "s3_url"]

# `Path`, and so the command line, folds the two slashes into one.
_URL = re.compile(r"s3:/{1,2}(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*?))?/*")
_CHUNK = 8 << 20
_SINGLE = 64 << 20  # bytes; what is larger is put in parts
_METADATA = "/latest/"  # who has credentials nowhere ends up asking the machine itself for its role


class MovedError(Exception):
    """A conditional put found another object than it expected; nothing was written."""


@dataclass(frozen=True, slots=True)
class Found:
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


class Bucket:
    """The objects below the prefix of `url`. A put is whole or it did not happen; threads may share one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._name, _, prefix = url.removeprefix("s3://").partition("/")
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise StorageError(
                f"expected the library obstore for {url}, found it missing; `pip install 'kronos-nightly[s3]'`"
            ) from error
        place = endpoint()
        self._store: S3Store = S3Store(
            self._name,
            prefix=prefix or None,
            config={"endpoint": place} if place else None,
            client_options={
                "allow_http": place.startswith("http://"),
                "connect_timeout": "3s",
                "read_timeout": "30s",
                "timeout": "10m",
            },
            retry_config={"max_retries": 4, "retry_timeout": timedelta(minutes=2)},
        )

    def get(self, key: str) -> Found | None:
        """An object; None where there is none."""
        import obstore

        with self._asking():
            try:
                result = obstore.get(self._store, key)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            content = bytes(result.bytes())
            return Found(content, result.meta["e_tag"] or "", result.meta["last_modified"])

    def put(self, key: str, content: bytes, *, expect: str | None) -> str:
        """Write an object where there still is the version `expect`, or none (None); its new version.

        Raises MovedError where somebody else was there first.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._asking():
            try:
                result = obstore.put(
                    self._store, key, content, mode="create" if expect is None else {"e_tag": expect}
                )
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise MovedError(key) from error
            return result["e_tag"] or ""

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        """Write a file, whatever was there."""
        import obstore

        with self._asking():
            obstore.put(self._store, key, file, use_multipart=size > _SINGLE, chunk_size=_CHUNK)

    def download(self, key: str, path: Path) -> str:
        """Write an object's bytes to `path`; their sha256. FileNotFoundError where there is none."""
        import obstore

        digest = hashlib.sha256()
        with self._asking(missing=True), path.open("wb") as file:
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is none to delete."""
        import obstore

        if doomed := sorted(keys):
            with self._asking():
                obstore.delete(self._store, doomed)

    def keys(self, prefix: str) -> Iterator[str]:
        """The names of all objects below a prefix."""
        import obstore

        with self._asking():
            for page in obstore.list(self._store, prefix, chunk_size=1000):
                yield from (one["path"] for one in page)

    def now(self) -> datetime:
        """The store's own clock: when it says that something written now was written."""
        import obstore

        with self._asking():
            obstore.put(self._store, "clock", uuid.uuid4().bytes)
            return obstore.head(self._store, "clock")["last_modified"]

    @contextmanager
    def _asking(self, *, missing: bool = False) -> Iterator[None]:
        """Turn what the store refuses into a StorageError, and let a missing object through where asked to."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if missing and "NoSuchBucket" not in str(error):
                raise
            raise StorageError(self._sentence(str(error))) from None
        except BaseError as error:  # without its cause: that repeats the request
            raise StorageError(self._sentence(str(error))) from None

    def _sentence(self, said: str) -> str:
        place = endpoint() or "Amazon S3"
        if "NoSuchBucket" in said:
            return (
                f"expected a bucket {self._name} at {place}, found none; create it or correct the home's URL"
            )
        if _METADATA in said:
            return (
                f"expected credentials for {self.url}, found none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or run where the machine has a role"
            )
        status = re.search(r"status code: (\d{3})", said)
        code = re.search(r"<Code>(\w+)</Code>", said)
        found = " ".join(one[1] for one in (status, code) if one)
        if status and status[1] in ("401", "403"):
            return (
                f"expected {place} to let this user read and write {self.url}, found that it refuses ({found}); check "
                "the AWS_* variables and the rights on the bucket"
            )
        return (
            f"expected {place} to serve {self.url}, found {f'HTTP {found}' if found else 'no answer'}; check "
            "AWS_ENDPOINT_URL, AWS_REGION and the network, then run the same again: nothing is half-written"
        )
