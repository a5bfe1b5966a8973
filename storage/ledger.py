"""The ledger: where every stretch of a series came from, and what is known of every hole in it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from storage.atomic import write_json
from storage.errors import CandleError, LakeError
from storage.interval import Interval
from storage.layout import series_folder
from storage.schema import SeriesKey, next_open, off_grid, utc_text

__all__ = ["Hole", "HoleStatus", "Ledger", "Part", "Source", "find_holes"]

HoleStatus = Literal["outage", "repaired", "open"]


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
class Hole:
    """Missing candles inside a series: they would open from `start_ms` up to, not at, `end_ms`."""

    start_ms: int
    end_ms: int
    candles: int
    status: HoleStatus = "open"


def find_holes(candles: pl.DataFrame, interval: Interval) -> list[Hole]:
    """The holes between the first and the last candle, oldest first; CandleError for rows off the grid."""
    times = candles["open_time"]
    if (outside := times.filter(off_grid(times, interval)).dt.epoch("ms")).len():
        raise CandleError(
            f"expected open times on the {interval} grid, found {utc_text(outside[0])}; drop such rows first"
        )
    expected = candles.select(next_open(pl.col("open_time"), interval)).to_series().dt.epoch("ms")
    gaps = pl.DataFrame({"start": expected, "end": times.dt.epoch("ms").shift(-1)}).filter(
        pl.col("end") > pl.col("start")
    )
    return [Hole(start, end, interval.count(start, end) - 1) for start, end in gaps.iter_rows()]


class Ledger:
    """The ledgers of all series under a lake's root, one `ledger.json` beside each series.

    Who records or marks while others might holds `Lake.writing(key)`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def record(self, key: SeriesKey, part: Part) -> None:
        """Add a part. One that its source already covers changes nothing; neighbours of one source merge."""
        content = self._load(key)
        same = [known for known in content.parts if known.source == part.source]
        if any(known.first_ms <= part.first_ms and part.last_ms <= known.last_ms for known in same):
            return
        merged = part
        for known in same:
            if _touch(merged, known, key.interval):
                first, last = min(merged.first_ms, known.first_ms), max(merged.last_ms, known.last_ms)
                merged = replace(merged, first_ms=first, last_ms=last)
        kept = [
            known
            for known in content.parts
            if known.source != part.source or not (merged.first_ms <= known.first_ms <= merged.last_ms)
        ]
        parts = sorted([*kept, merged], key=lambda one: (one.first_ms, one.last_ms, one.recorded_ms))
        self._save(key, replace(content, parts=tuple(parts)))

    def parts(self, key: SeriesKey) -> list[Part]:
        """All parts, oldest candles first; where parts overlap the one recorded last tells the source."""
        return list(self._load(key).parts)

    def holes(self, key: SeriesKey, candles: pl.DataFrame) -> list[Hole]:
        """The holes inside `candles`, each `outage` if a marked outage covers it, else `open`."""
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

    def mark(self, key: SeriesKey, hole: Hole, status: HoleStatus) -> None:
        """Remember what is known of a hole; the last word on the same stretch counts."""
        content = self._load(key)
        marked = replace(hole, status=status)
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
            return _Content((), ())
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return _Content(_parts(stored["parts"]), tuple(Hole(**mark) for mark in stored["holes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LakeError(
                f"expected a ledger of version 1 in {path}, found something unreadable ({error}); "
                "delete that file, the candles stay"
            ) from error

    def _save(self, key: SeriesKey, content: "_Content") -> None:
        parts = [asdict(part) for part in content.parts]
        write_json(
            self._path(key), {"version": 1, "parts": parts, "holes": [asdict(mark) for mark in content.marks]}
        )


@dataclass(frozen=True, slots=True)
class _Content:
    parts: tuple[Part, ...]
    marks: tuple[Hole, ...]


def _parts(stored: Sequence[dict[str, Any]]) -> tuple[Part, ...]:
    return tuple(Part(**{**part, "source": Source(**part["source"])}) for part in stored)


def _touch(one: Part, other: Part, interval: Interval) -> bool:
    return one.first_ms <= interval.next(other.last_ms) and other.first_ms <= interval.next(one.last_ms)
