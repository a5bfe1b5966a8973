"""The storage bucket behind the archive: its listing as S3 pages it, and its files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote
from xml.sax.saxutils import escape

from exchange.replay.answers import Answer

__all__ = ["ArchiveBucket", "FolderBucket", "Stored", "bucket_answer", "is_for_bucket"]

NAME = "data.binance.vision"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
XML_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of a bucket as a listing shows it."""

    key: str
    size: int
    etag: str
    modified_ms: int


class ArchiveBucket(Protocol):
    """Files by key, such as `data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-06.zip`."""

    def listed(self, prefix: str) -> Sequence[Stored]:
        """The files whose keys begin with `prefix`, in any order."""
        ...

    def content(self, key: str) -> bytes | None:
        """The bytes of a file, None if there is none of that key."""
        ...


class FolderBucket:
    """A folder on disk, served as it is. Its files do not change while it is served."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def listed(self, prefix: str) -> Sequence[Stored]:
        """Every file under the folder whose path begins with `prefix`."""
        base = (self._folder / prefix.rpartition("/")[0]).resolve()
        if not base.is_relative_to(self._folder):
            return ()
        keys = (path.relative_to(self._folder).as_posix() for path in base.rglob("*") if path.is_file())
        return [self._stored(key) for key in keys if key.startswith(prefix)]

    def content(self, key: str) -> bytes | None:
        path = (self._folder / key).resolve()
        return path.read_bytes() if path.is_relative_to(self._folder) and path.is_file() else None

    def _stored(self, key: str) -> Stored:
        status = (self._folder / key).stat()
        etag = hashlib.md5(f"{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()
        return Stored(key, status.st_size, etag, status.st_mtime_ns // 1_000_000)


def is_for_bucket(path: str, params: Mapping[str, str]) -> bool:
    """Whether a request is for the archive: a file below /data/, or a listing, which names a prefix."""
    return path.startswith("/data/") or ("prefix" in params and path.strip("/") in ("", NAME))


def bucket_answer(bucket: ArchiveBucket, path: str, params: Mapping[str, str], *, page_size: int) -> Answer:
    if not path.startswith("/data/"):
        return Answer(200, _listing(bucket, params, page_size), content_type="application/xml")
    key = unquote(path.removeprefix("/"))
    content = bucket.content(key)
    if content is None:
        missing = f"{XML_HEAD}<Error><Code>NoSuchKey</Code><Key>{escape(key)}</Key></Error>"
        return Answer(404, missing.encode(), content_type="application/xml")
    kind = "application/zip" if key.endswith(".zip") else "binary/octet-stream"
    return Answer(200, content, content_type=kind)


def _listing(bucket: ArchiveBucket, params: Mapping[str, str], page_size: int) -> bytes:
    prefix, delimiter, marker = (params.get(name, "") for name in ("prefix", "delimiter", "marker"))
    asked = params.get("max-keys", "")
    most = min(page_size, int(asked)) if asked.isdecimal() else page_size
    found: dict[str, Stored | None] = {}  # a common prefix is None
    for stored in bucket.listed(prefix):
        rest = stored.key[len(prefix) :]
        folded = bool(delimiter) and delimiter in rest
        name = prefix + rest.partition(delimiter)[0] + delimiter if folded else stored.key
        found[name] = None if folded else stored
    names = sorted(name for name in found if name > marker)
    page, truncated = names[:most], len(names) > most
    following = f"<NextMarker>{escape(page[-1])}</NextMarker>" if truncated and delimiter and page else ""
    head = (
        f"<Name>{NAME}</Name><Prefix>{escape(prefix)}</Prefix><Marker>{escape(marker)}</Marker>{following}"
        f"<MaxKeys>{most}</MaxKeys><Delimiter>{escape(delimiter)}</Delimiter>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
    )
    files = (_contents(one) for name in page if (one := found[name]) is not None)
    folders = (
        f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        for name in page
        if found[name] is None
    )
    body = "".join([*files, *folders])
    return f'{XML_HEAD}<ListBucketResult xmlns="{NAMESPACE}">{head}{body}</ListBucketResult>'.encode()


def _contents(stored: Stored) -> str:
    modified = datetime.fromtimestamp(stored.modified_ms // 1000, UTC)
    return (
        f"<Contents><Key>{escape(stored.key)}</Key><LastModified>{modified:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{stored.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )
