"""The ledger: where every stretch of a series came from, what failed on the way, what is known of its holes.

It also holds the sha256 of every month's file as it was written, which is how a later damage is noticed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from storage.atomic import write_json
from storage.errors import CandleError, LakeError
from storage.interval import Interval
from storage.layout import series_folder
from storage.schema import SeriesKey, next_open, off_grid, utc_text

__all__ = ["Failure", "Hole", "HoleStatus", "Ledger", "Part", "Source", "find_holes"]

HoleStatus = Literal["outage", "repaired", "open", "stale"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where candles came from: `Source("archive", "DOGEUSDT-1h-2024-06.zip", sha256="...")`."""

    kind: Literal["archive", "rest", "stream", "import"]
    detail: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of candles from one source: open times `first_ms` to `last_ms`, both included."""

    source: Source
    first_ms: int
    last_ms: int
    recorded_ms: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A part of the archive that could not be used as it was, and why; other sources stood in for it."""

    part: str
    reason: str
    recorded_ms: int


@dataclass(frozen=True, slots=True)
class Hole:
    """Missing candles of a series: they would open from `start_ms` up to, not at, `end_ms`.

    `stale` is the one at the end of a series that the exchange has stopped to continue.
    """

    start_ms: int
    end_ms: int
    candles: int
    status: HoleStatus = "open"
    attempts: int = 0
    """Ingests in which the exchange was asked for an outage by itself and had nothing."""
    asked_ms: int = 0
    """When it was asked last, by its own clock."""


def find_holes(candles: pl.DataFrame | Iterable[pl.DataFrame], interval: Interval) -> list[Hole]:
    """The holes between the first and the last candle, oldest first; CandleError for rows off the grid.

    Long series are given in pieces, oldest first, such as those of Lake.open_times.
    """
    holes: list[Hole] = []
    due_ms: int | None = None  # what the next piece should begin with
    for piece in (candles,) if isinstance(candles, pl.DataFrame) else candles:
        if piece.is_empty():
            continue
        times = piece["open_time"]
        if (outside := times.filter(off_grid(times, interval)).dt.epoch("ms")).len():
            raise CandleError(
                f"expected open times on the {interval} grid, found {utc_text(outside[0])}; drop such rows first"
            )
        expected = piece.select(next_open(pl.col("open_time"), interval)).to_series().dt.epoch("ms")
        opened = times.dt.epoch("ms")
        gaps = pl.DataFrame({"start": expected, "end": opened.shift(-1)})
        stretches = list(gaps.filter(pl.col("end") > pl.col("start")).iter_rows())
        if due_ms is not None and opened[0] > due_ms:
            stretches.insert(0, (due_ms, opened[0]))
        holes += [Hole(start, end, interval.count(start, end) - 1) for start, end in stretches]
        due_ms = expected[-1]
    return holes


class Ledger:
    """The ledgers of all series under a lake's root, one `ledger.json` beside each series.

    Who records or marks while others might holds `Lake.writing(key)`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def record(self, key: SeriesKey, *parts: Part, file: tuple[str, str] | None = None) -> None:
        """Add parts, and the sha256 that their month's file now has: `("2024-06", "...")`.

        A part that its source already covers changes nothing; neighbours of one source merge.
        """
        content = self._load(key)
        taken = {part.source.detail for part in parts}
        after = replace(content, failures=tuple(one for one in content.failures if one.part not in taken))
        for part in parts:
            after = replace(after, parts=_merged(after.parts, part, key.interval))
        if file is not None:
            after = replace(after, files=dict(sorted({**content.files, file[0]: file[1]}.items())))
        if after != content:
            self._save(key, after)

    def parts(self, key: SeriesKey) -> list[Part]:
        """All parts, oldest candles first; where parts overlap the one recorded last tells the source."""
        return list(self._load(key).parts)

    def files(self, key: SeriesKey) -> Mapping[str, str]:
        """The sha256 of each month's file as it was last written; of older ledgers some may be missing."""
        return self._load(key).files

    def fail(self, key: SeriesKey, failure: Failure) -> None:
        """Remember why a part was not used as it was; the last word on it counts."""
        content = self._load(key)
        others = [known for known in content.failures if known.part != failure.part]
        failures = sorted([*others, failure], key=lambda one: one.part)
        self._save(key, replace(content, failures=tuple(failures)))

    def failures(self, key: SeriesKey) -> list[Failure]:
        """The parts that could not be used as they were, by name."""
        return list(self._load(key).failures)

    def tail(self, key: SeriesKey) -> Hole | None:
        """The stale hole after the last candle, if the exchange had nothing there when it was last asked."""
        return self._load(key).tail

    def set_tail(self, key: SeriesKey, hole: Hole | None) -> None:
        """Remember that the exchange has no candles at the end of the series, or has some again."""
        content = self._load(key)
        tail = hole and replace(hole, status="stale")
        if tail != content.tail:
            self._save(key, replace(content, tail=tail))

    def holes(self, key: SeriesKey, candles: pl.DataFrame | Iterable[pl.DataFrame]) -> list[Hole]:
        """The holes inside `candles`, or their pieces: `outage` where a marked outage covers it, else `open`."""
        outages = [mark for mark in self.marks(key) if mark.status == "outage"]
        return [
            replace(hole, status="outage")
            if any(mark.start_ms <= hole.start_ms and hole.end_ms <= mark.end_ms for mark in outages)
            else hole
            for hole in find_holes(candles, key.interval)
        ]

    def marks(self, key: SeriesKey) -> list[Hole]:
        """Every hole that was ever marked, the repaired ones too, oldest first."""
        return list(self._load(key).marks)

    def mark(
        self, key: SeriesKey, hole: Hole, status: HoleStatus, *, attempts: int = 0, asked_ms: int = 0
    ) -> None:
        """Remember what is known of a hole; the last word on the same stretch counts."""
        content = self._load(key)
        marked = replace(hole, status=status, attempts=attempts, asked_ms=asked_ms)
        if marked in content.marks:
            return
        others = [
            mark for mark in content.marks if (mark.start_ms, mark.end_ms) != (hole.start_ms, hole.end_ms)
        ]
        marks = sorted([*others, marked], key=lambda mark: (mark.start_ms, mark.end_ms))
        self._save(key, replace(content, marks=tuple(marks)))

    def _path(self, key: SeriesKey) -> Path:
        return series_folder(self._root, key) / "ledger.json"

    def _load(self, key: SeriesKey) -> "_Content":
        path = self._path(key)
        if not path.exists():
            return _Content()
        try:
            return _content(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LakeError(
                f"expected a ledger of version 1 in {path}, found something unreadable ({error}); "
                "delete that file, the candles stay"
            ) from error

    def _save(self, key: SeriesKey, content: "_Content") -> None:
        stored = {"version": 1, **asdict(content)}
        stored["holes"] = stored.pop("marks")
        write_json(self._path(key), stored)


@dataclass(frozen=True, slots=True)
class _Content:
    parts: tuple[Part, ...] = ()
    marks: tuple[Hole, ...] = ()
    failures: tuple[Failure, ...] = ()
    tail: Hole | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def _content(stored: Mapping[str, Any]) -> _Content:
    tail = stored.get("tail")
    return _Content(
        parts=tuple(Part(**{**part, "source": Source(**part["source"])}) for part in stored["parts"]),
        marks=tuple(Hole(**mark) for mark in stored["holes"]),
        failures=tuple(Failure(**failure) for failure in stored.get("failures", [])),
        tail=Hole(**tail) if tail else None,
        files=dict(stored.get("files", {})),
    )


def _merged(parts: Sequence[Part], part: Part, interval: Interval) -> tuple[Part, ...]:
    """The parts with one more."""
    same = [known for known in parts if known.source == part.source]
    if any(known.first_ms <= part.first_ms and part.last_ms <= known.last_ms for known in same):
        return tuple(parts)
    merged = part
    for known in same:
        if _touch(merged, known, interval):
            first, last = min(merged.first_ms, known.first_ms), max(merged.last_ms, known.last_ms)
            merged = replace(merged, first_ms=first, last_ms=last)
    kept = [
        known
        for known in parts
        if known.source != part.source or not (merged.first_ms <= known.first_ms <= merged.last_ms)
    ]
    return tuple(sorted([*kept, merged], key=lambda one: (one.first_ms, one.last_ms, one.recorded_ms)))


def _touch(one: Part, other: Part, interval: Interval) -> bool:
    return one.first_ms <= interval.next(other.last_ms) and other.first_ms <= interval.next(one.last_ms)
