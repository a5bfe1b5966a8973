"""The parts of the bulk archive: their names, the time they span, and the listing that tells which exist.

One zip per series and month or day, `data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-06.zip`, each with a
`.CHECKSUM` beside it. The bucket lists its keys in pages of XML, as S3 does.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self, get_args
from xml.etree import ElementTree

from storage.interval import Interval
from storage.schema import Market, SeriesKey

__all__ = [
    "ArchivePart",
    "ListingPage",
    "PartKind",
    "folder_of",
    "kinds_of",
    "parse_listing",
    "parts_among",
    "period_ms",
    "periods",
    "stem_of",
]

PartKind = Literal["monthly", "daily"]
ListingPage = tuple[Mapping[str, str], str | None]

DAY_MS = 86_400_000
MARKET_FOLDERS: dict[Market, str] = {"spot": "spot", "um": "futures/um"}
PERIOD_FORMATS: dict[PartKind, str] = {"monthly": "%Y-%m", "daily": "%Y-%m-%d"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivePart:
    """One zip of the archive, and the candles that it can hold: those that open and close in its period."""

    key: SeriesKey
    kind: PartKind
    period: str
    """`2024-06` or `2024-06-01`."""
    url: str
    first_ms: int
    """Open time of the first candle of the period."""
    last_ms: int
    """Open time of the last candle that also closes in the period."""
    etag: str | None = None
    """Changes when the exchange replaces the file; None unless it comes from a listing."""

    @classmethod
    def of(
        cls, key: SeriesKey, kind: PartKind, period: str, *, archive_url: str, etag: str | None = None
    ) -> Self:
        """The part of that period, whether or not the archive has it."""
        begin_ms, end_ms = period_ms(kind, period)
        first_ms = key.interval.next(key.interval.floor(begin_ms - 1))
        last_ms = key.interval.floor(key.interval.floor(end_ms) - 1)
        url = f"{archive_url.rstrip('/')}/{stem_of(key, kind)}{period}.zip"
        return cls(key=key, kind=kind, period=period, url=url, first_ms=first_ms, last_ms=last_ms, etag=etag)

    @property
    def name(self) -> str:
        """`BTCUSDT-1m-2024-06.zip`."""
        return self.url.rpartition("/")[2]

    @property
    def order(self) -> tuple[int, bool]:
        """Sorts by period, a month before its days."""
        return self.first_ms, self.kind == "daily"


def kinds_of(interval: Interval) -> tuple[PartKind, ...]:
    """The kinds of parts that can hold whole candles; none longer than a day fits into one."""
    length = interval.milliseconds
    return get_args(PartKind) if length is not None and length <= DAY_MS else ("monthly",)


def folder_of(key: SeriesKey, kind: PartKind) -> str:
    """`data/futures/um/daily/klines/DOGEUSDT/1mo/`, the prefix of a series' keys."""
    return f"data/{MARKET_FOLDERS[key.market]}/{kind}/klines/{key.symbol}/{key.interval.slug}/"


def stem_of(key: SeriesKey, kind: PartKind, start_ms: int | None = None) -> str:
    """What the bucket's keys of a series begin with; or what sorts right before the period of `start_ms`."""
    stem = f"{folder_of(key, kind)}{key.symbol}-{key.interval.slug}-"
    return stem if start_ms is None else stem + _text(kind, start_ms)


def parse_listing(body: bytes) -> ListingPage:
    """The keys of a ListBucketResult with their etags, and the marker that asks for the next page, None if this
    was the last; ValueError if it is none."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML ({error})") from error
    space = root.tag.removesuffix("ListBucketResult")
    if space == root.tag:
        raise ValueError(f"<{root.tag}> instead of <ListBucketResult>")

    def text(element: ElementTree.Element, name: str) -> str:
        return element.findtext(space + name) or ""

    etags = {text(one, "Key"): text(one, "ETag").strip('"') for one in root.iterfind(f"{space}Contents")}
    if text(root, "IsTruncated") != "true":
        return etags, None
    marker = text(root, "NextMarker") or next(reversed(etags), "")
    if not marker:
        raise ValueError("a truncated listing that does not say where it goes on")
    return etags, marker


def parts_among(
    etags: Mapping[str, str], key: SeriesKey, kind: PartKind, *, archive_url: str
) -> list[ArchivePart]:
    """The zips of a series among listed keys; checksums and whatever else lies there are passed over."""
    digits = r"\d{4}-\d\d" + (r"-\d\d" if kind == "daily" else "")
    pattern = re.compile(rf"{re.escape(stem_of(key, kind))}({digits})\.zip")
    parts = [
        ArchivePart.of(key, kind, match[1], archive_url=archive_url, etag=etag or None)
        for name, etag in etags.items()
        if (match := pattern.fullmatch(name))
    ]
    return [part for part in parts if part.first_ms <= part.last_ms]


def period_ms(kind: PartKind, period: str) -> tuple[int, int]:
    """Begin and end of a period; ValueError if it is none of that kind."""
    begin = datetime.strptime(period, PERIOD_FORMATS[kind]).replace(tzinfo=UTC)
    end = begin + timedelta(days=1) if kind == "daily" else (begin + timedelta(days=31)).replace(day=1)
    return int(begin.timestamp()) * 1000, int(end.timestamp()) * 1000


def periods(kind: PartKind, start_ms: int, end_ms: int) -> Iterator[str]:
    """The months or days that hold an instant of [start, end), such as `2024-06`."""
    while start_ms < end_ms:
        period = _text(kind, start_ms)
        yield period
        start_ms = period_ms(kind, period)[1]


def _text(kind: PartKind, ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime(PERIOD_FORMATS[kind])
