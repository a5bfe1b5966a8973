"""The lake: candles at rest, one Parquet file per series and month, written by upsert.

`market=um/symbol=DOGEUSDT/interval=1h/month=2024-06/candles.parquet`. What a file holds depends on its
candles alone, never on the order or the sizes of the upserts that brought them. The last upsert of an
open_time wins.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from storage.atomic import atomic_path, remove_leftovers
from storage.errors import LakeError
from storage.interval import Interval, wall_clock_ms
from storage.layout import series_folder
from storage.ledger import Ledger, Part, Source
from storage.locks import ProcessLock
from storage.parquet import PARQUET_ERRORS, parquet_bytes, read_parquet, read_parquets
from storage.schema import CANDLE_SCHEMA, SeriesKey, validate_candles

__all__ = ["Lake", "Span", "Upsert"]

_FILE = "candles.parquet"
_MONTH = "month="
_PATIENCE_S = 2.0  # a monitor that appends a candle is done sooner; an ingest is not
_READ_AT_ONCE = 16_000_000  # bytes of month files; years of 1h, a month of 1s
_MONTH_OF_ROW = pl.col("open_time").dt.strftime("%Y-%m")


@dataclass(frozen=True, slots=True)
class Upsert:
    """What an upsert did, in candles."""

    added: int
    changed: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Span:
    """The extent of a series: open times of its first and last candle, and how many there are."""

    first_ms: int
    last_ms: int
    rows: int


class Lake:
    """All series under one root. Any number of readers; one writer per series."""

    def __init__(self, root: Path, *, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._root = root
        self._now_ms = now_ms
        self._ledger = Ledger(root)
        self._locks: dict[SeriesKey, ProcessLock] = {}

    def upsert(self, key: SeriesKey, candles: pl.DataFrame, *, source: Source) -> Upsert:
        """Add or replace candles by open_time and note in the ledger where they came from.

        Files whose candles stay the same are not written. A crash leaves whole months, old or new.
        """
        origin = f"{key} from {source.kind} {source.detail}"
        return self.put(key, [(validate_candles(candles, key.interval, origin=origin), source)])

    def put(self, key: SeriesKey, parts: Sequence[tuple[pl.DataFrame, Source]]) -> Upsert:
        """The same for several parts of validated candles at once, of which later ones win."""
        months: dict[str, list[tuple[pl.DataFrame, Source]]] = {}
        for candles, source in parts:
            for month, rows in _by_month(candles):
                months.setdefault(month, []).append((rows, source))
        added = changed = given = 0
        with self.writing(key):
            for month, pieces in sorted(months.items()):
                counts = self._merge_month(key, month, pieces)
                added, changed, given = added + counts[0], changed + counts[1], given + counts[2]
        return Upsert(added=added, changed=changed, unchanged=given - added - changed)

    def read(self, key: SeriesKey, start_ms: int | None = None, end_ms: int | None = None) -> pl.DataFrame:
        """Candles that open in [start_ms, end_ms), oldest first; a bound left out is open.

        Only the months of that range are opened. A series that the lake does not have is a LakeError.
        """
        paths = self._months(key)
        if not paths:
            raise LakeError(f"expected candles of {key} in {self._root}, found none; ingest the series first")
        chosen = _within(paths, start_ms, end_ms)
        if not chosen:
            return pl.DataFrame(schema=CANDLE_SCHEMA)
        return _collect(lambda scan: _between(scan, start_ms, end_ms), chosen).set_sorted("open_time")

    def span(self, key: SeriesKey) -> Span | None:
        """First and last open time and the number of candles; None if the lake has none of this series."""
        extents = [_collect(_extent, paths).row(0) for paths in _batches(self._months(key))]
        if not extents:
            return None
        return Span(first_ms=extents[0][0], last_ms=extents[-1][1], rows=sum(rows for *_, rows in extents))

    def months(self, key: SeriesKey) -> Iterator[tuple[str, pl.DataFrame]]:
        """The candles of a series a month at a time, oldest first: `("2024-06", candles)`."""
        for path in self._months(key):
            yield _name_of(path), _collect(lambda scan: scan, [path])

    def open_times(
        self, key: SeriesKey, start_ms: int | None = None, end_ms: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """The open times in [start_ms, end_ms) in pieces, oldest first, in frames of that column alone.

        Frames have rows; there are none of a series that is absent.
        """
        for paths in _batches(_within(self._months(key), start_ms, end_ms)):
            times = _collect(lambda scan: _between(scan.select("open_time"), start_ms, end_ms), paths)
            if not times.is_empty():
                yield times

    def folder(self, key: SeriesKey) -> Path:
        """Where the files of a series are."""
        return series_folder(self._root, key)

    def files(self, key: SeriesKey) -> dict[str, Path]:
        """The file of every month that has one, oldest first."""
        return {_name_of(path): path for path in self._months(key)}

    def series(self) -> list[SeriesKey]:
        """The keys of all series that have candles, in order."""
        folders = {
            path.parent.parent for path in self._root.glob(f"market=*/symbol=*/interval=*/{_MONTH}*/{_FILE}")
        }
        return sorted(_key_of(folder) for folder in folders)

    @contextmanager
    def writing(self, key: SeriesKey) -> Iterator[None]:
        """Be the one writer of a series; LockedError while another is. May be nested within a thread."""
        if key not in self._locks:
            self._locks[key] = ProcessLock(
                series_folder(self._root, key) / ".lock", guarded=f"the series {key}"
            )
        with self._locks[key].hold(f"writing {key}", wait_s=_PATIENCE_S):
            yield

    def _merge_month(
        self, key: SeriesKey, month: str, pieces: list[tuple[pl.DataFrame, Source]]
    ) -> tuple[int, int, int]:
        """Candles added, changed and given."""
        path = series_folder(self._root, key) / f"{_MONTH}{month}" / _FILE
        remove_leftovers(path.parent)
        rows = pieces[0][0]
        if len(pieces) > 1:
            rows = pl.concat([part for part, _ in pieces]).unique("open_time", keep="last").sort("open_time")
        if not path.exists():
            self._write_month(key, month, rows, pieces)
            return len(rows), 0, len(rows)
        stored = _collect(lambda scan: scan, [path])
        added = rows.join(stored, on="open_time", how="anti")
        before = stored.join(rows, on="open_time", how="semi").sort("open_time")
        after = rows.join(stored, on="open_time", how="semi").sort("open_time")
        changed = after.filter(_differ(before, after))
        news = pl.concat([added, changed]).select("open_time")
        if not news.is_empty():
            merged = pl.concat([stored.join(rows, on="open_time", how="anti"), rows]).sort("open_time")
            fresh = [(part.join(news, on="open_time", how="semi"), source) for part, source in pieces]
            self._write_month(key, month, merged, fresh)
        return len(added), len(changed), len(rows)

    def _write_month(
        self, key: SeriesKey, month: str, candles: pl.DataFrame, news: list[tuple[pl.DataFrame, Source]]
    ) -> None:
        """Write a month, after the ledger has noted which news came from where.

        The ledger first: after a crash in between the rows are still new and are recorded again.
        """
        content = parquet_bytes(candles)
        times = ((rows["open_time"].dt.epoch("ms").sort(), source) for rows, source in news if len(rows))
        parts = [Part(source, ms[0], ms[-1], self._now_ms()) for ms, source in times]
        self._ledger.record(key, *parts, file=(month, hashlib.sha256(content).hexdigest()))
        with atomic_path(series_folder(self._root, key) / f"{_MONTH}{month}" / _FILE) as temporary:
            temporary.write_bytes(content)

    def _months(self, key: SeriesKey) -> list[Path]:
        return sorted(series_folder(self._root, key).glob(f"{_MONTH}*/{_FILE}"))


def _by_month(candles: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Ascending candles by their month."""
    if candles.is_empty():
        return
    opened = candles["open_time"]
    if _month(opened.dt.epoch("ms")[0]) == _month(opened.dt.epoch("ms")[-1]):
        yield _month(opened.dt.epoch("ms")[0]), candles
        return
    for (month,), rows in candles.group_by(_MONTH_OF_ROW, maintain_order=True):
        yield str(month), rows


def _name_of(path: Path) -> str:
    return path.parent.name.removeprefix(_MONTH)


def _extent(scan: pl.LazyFrame) -> pl.LazyFrame:
    opened = pl.col("open_time").dt.epoch("ms")
    return scan.select(opened.min().alias("first"), opened.max().alias("last"), pl.len().alias("rows"))


def _key_of(folder: Path) -> SeriesKey:
    market, symbol, interval = (part.partition("=")[2] for part in folder.parts[-3:])
    return SeriesKey.parse(f"{market}:{symbol}", Interval.of_slug(interval))


def _differ(before: pl.DataFrame, after: pl.DataFrame) -> pl.Series:
    """Row by row, whether two frames with the same open times differ; null equals null."""
    masks = [before[name].ne_missing(after[name]).alias(name) for name in CANDLE_SCHEMA]
    return pl.DataFrame(masks).select(pl.any_horizontal(pl.all())).to_series()


def _within(paths: list[Path], start_ms: int | None, end_ms: int | None) -> list[Path]:
    """The month files that can hold candles that open in [start_ms, end_ms)."""
    first = "" if start_ms is None else _month(start_ms)
    last = "9999-12" if end_ms is None else _month(end_ms - 1)
    return [path for path in paths if first <= _name_of(path) <= last]


def _batches(paths: list[Path]) -> Iterator[list[Path]]:
    """Months to be read together: a query of its own for each small file would cost more than the reading."""
    batch: list[Path] = []
    size = 0
    for path in paths:
        batch.append(path)
        size += path.stat().st_size
        if size >= _READ_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _between(scan: pl.LazyFrame, start_ms: int | None, end_ms: int | None) -> pl.LazyFrame:
    opened = pl.col("open_time").dt.epoch("ms")
    if start_ms is not None:
        scan = scan.filter(opened >= start_ms)
    if end_ms is not None:
        scan = scan.filter(opened < end_ms)
    return scan


def _month(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m")


def _collect(query: Callable[[pl.LazyFrame], pl.LazyFrame], paths: list[Path]) -> pl.DataFrame:
    """Run a query over month files; LakeError that names the file which is no such file."""
    try:
        scan = read_parquets(paths)
        if dict(scan.collect_schema()) == CANDLE_SCHEMA:
            return query(scan).collect()
    except PARQUET_ERRORS as error:
        raise LakeError(_damage(paths)) from error
    raise LakeError(_damage(paths))


def _damage(paths: list[Path]) -> str:
    for path in paths:
        try:
            if dict(read_parquet(path).schema) == CANDLE_SCHEMA:
                continue
            found = "other columns"
        except PARQUET_ERRORS:
            found = "a damaged file"
        return (
            f"expected candles in {path}, found {found}; delete it, the next ingest fetches the month again"
        )
    return f"expected candles in {paths[0].parents[1]}, found files that do not read together; run again"
