"""The bulk archive of a replayed exchange: zips built from its candles when they are first asked for.

A part appears when the exchange's clock passes its publication: days some hours after midnight, months on the
first Monday after they end. A listing states the size of a zip that is not yet built as an estimate.
"""

import hashlib
import io
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from exchange.archive_parts import (
    MARKET_FOLDERS,
    ArchivePart,
    PartKind,
    folder_of,
    kinds_of,
    period_ms,
    periods,
)
from exchange.replay.archive_style import ArchiveStyle, PartFault, PartFaultKind
from exchange.replay.bucket_listing import Stored
from exchange.replay.clock import ReplayClock
from exchange.replay.encoding import wire_columns
from exchange.replay.listed_symbols import ReplayMarket
from exchange.replay.series import ReplaySeries
from storage.atomic import atomic_path
from storage.errors import CandleError
from storage.interval import Interval
from storage.parse import BINANCE_COLUMNS
from storage.schema import Market, SeriesKey

__all__ = ["ReplayArchive"]

CACHE_BYTES = 256 << 20
BYTES_PER_ROW = 42  # of a zip, for the sizes of what is not yet built
ALTERED = 2750  # by how much public-data #474 saw volumes drop
KEY = re.compile(
    r"data/(?P<market>spot|futures/um)/(?P<kind>monthly|daily)/klines/(?P<symbol>\w+)/(?P<interval>\w+)/"
    r"(?P=symbol)-(?P=interval)-(?P<period>\d{4}-\d\d(?:-\d\d)?)\.zip(?P<checksum>\.CHECKSUM)?"
)


@dataclass(frozen=True, slots=True)
class _Place:
    """A published part: which rows of which series it holds, and what is wrong with it."""

    part: ArchivePart
    series: ReplaySeries
    rows: range
    published_ms: int
    faults: tuple[PartFault, ...]

    @property
    def key(self) -> str:
        return self.part.url.lstrip("/")

    def has(self, kind: PartFaultKind) -> bool:
        return any(fault.kind == kind for fault in self.faults)

    @property
    def etag(self) -> str:
        return hashlib.md5(f"{self.key}:{self.faults}".encode()).hexdigest()


class ReplayArchive:
    """The bucket of a replay's markets. Zips are built once and kept, the latest 256 MB of them."""

    def __init__(
        self, markets: Mapping[Market, ReplayMarket], *, clock: ReplayClock, style: ArchiveStyle
    ) -> None:
        self.style = style
        """How it is written and published; may be replaced at any time, but for its folder."""
        self._markets = markets
        self._clock = clock
        self._lock = threading.Lock()
        self._zips: OrderedDict[tuple[str, str, ArchiveStyle], bytes] = OrderedDict()

    def listed(self, prefix: str) -> Sequence[Stored]:
        """The published files whose keys begin with `prefix`."""
        stored: list[Stored] = []
        for key, kind in self._folders(prefix):
            for place in self._places(key, kind):
                built = self._zips.get((place.key, place.etag, self.style))
                size = len(built) if built else 200 + BYTES_PER_ROW * len(place.rows)
                stored.append(Stored(place.key, size, place.etag, place.published_ms))
                if not place.has("no-checksum"):
                    name = f"{place.key}.CHECKSUM"
                    stored.append(Stored(name, 66 + len(place.part.name), place.etag, place.published_ms))
        return [one for one in stored if one.key.startswith(prefix)]

    def content(self, key: str) -> bytes | None:
        """A zip or its CHECKSUM, if it is published."""
        match = KEY.fullmatch(key)
        place = self._place_of(match) if match else None
        if match is None or place is None:
            return None
        if not match["checksum"]:
            return self._zip(place)
        if place.has("no-checksum"):
            return None
        content = b"other bytes" if place.has("wrong-checksum") else self._zip(place)
        return f"{hashlib.sha256(content).hexdigest()}  {place.part.name}\n".encode()

    def write(self, folder: Path, prefix: str = "data/") -> int:
        """Write the published files under `prefix` into a folder, to be served as it is; tells how many."""
        names = [stored.key for stored in self.listed(prefix)]
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(self.content(name) or b"")
        return len(names)

    def _folders(self, prefix: str) -> Iterator[tuple[SeriesKey, PartKind]]:
        """The series and kinds whose folders can hold keys that begin with `prefix`."""
        for market, replayed in self._markets.items():
            for symbol in replayed.symbols:
                for name in replayed.intervals(symbol):
                    key = SeriesKey(market, symbol, Interval(name))
                    for kind in kinds_of(key.interval):
                        folder = folder_of(key, kind)
                        if folder.startswith(prefix) or prefix.startswith(folder):
                            yield key, kind

    def _places(self, key: SeriesKey, kind: PartKind) -> Iterator[_Place]:
        series = self._markets[key.market].series(key.symbol, key.interval)
        if series is None or not len(series.open_ms):
            return
        for period in periods(kind, int(series.open_ms[0]), int(series.open_ms[-1]) + 1):
            if (place := self._place(key, kind, period, series)) is not None:
                yield place

    def _place_of(self, match: re.Match[str]) -> _Place | None:
        market = next(name for name, folder in MARKET_FOLDERS.items() if folder == match["market"])
        kind = next(one for one in get_args(PartKind) if one == match["kind"])
        try:
            key = SeriesKey(market, match["symbol"], Interval.of_slug(match["interval"]))
            period_ms(kind, match["period"])
        except (CandleError, ValueError):
            return None
        if kind not in kinds_of(key.interval) or key.symbol not in self._markets[market].symbols:
            return None
        series = self._markets[market].series(key.symbol, key.interval)
        return None if series is None else self._place(key, kind, match["period"], series)

    def _place(self, key: SeriesKey, kind: PartKind, period: str, series: ReplaySeries) -> _Place | None:
        begin_ms, end_ms = period_ms(kind, period)
        now_ms, published_ms = self._clock.now_ms, self.style.published_ms(kind, end_ms)
        first = int(np.searchsorted(series.open_ms, begin_ms))
        last = int(np.searchsorted(series.open_ms, end_ms))
        last = min(last, int(np.searchsorted(series.close_ms, published_ms)))
        if now_ms < published_ms or first >= last:
            return None
        part = ArchivePart.of(key, kind, period, archive_url="")
        faults = tuple(
            fault
            for fault in self.style.faults
            if (fault.until_ms is None or now_ms < fault.until_ms) and fnmatchcase(part.url, fault.part)
        )
        place = _Place(part, series, range(first, last), published_ms, faults)
        return None if place.has("absent") else place

    def _zip(self, place: _Place) -> bytes:
        known = (place.key, place.etag, style := self.style)
        with self._lock:
            if known not in self._zips:
                self._zips[known] = _zipped(place, style)
                while len(self._zips) > 1 and sum(map(len, self._zips.values())) > CACHE_BYTES:
                    self._zips.popitem(last=False)
            self._zips.move_to_end(known)
            return self._zips[known]


def _zipped(place: _Place, style: ArchiveStyle) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(place.part.name.replace(".zip", ".csv"))  # its date is fixed: equal bytes
        archive.writestr(member, _csv(place, style), compress_type=zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return content[: len(content) // 2] if place.has("broken-zip") else content


def _with_faults(place: _Place) -> pl.DataFrame:
    candles = place.series.candles[place.rows.start : place.rows.stop]
    for fault in place.faults:
        hit = pl.lit(value=True)
        if fault.day is not None:
            hit = pl.col("open_time").dt.strftime("%Y-%m-%d") == fault.day
        if fault.kind == "lacks-day":
            candles = candles.filter(~hit)
        elif fault.kind == "unordered":
            candles = candles.reverse()
        elif fault.kind == "altered":
            amounts = pl.col("volume", "quote_volume")
            candles = candles.with_columns(
                pl.when(hit).then(amounts / ALTERED).otherwise(amounts).name.keep()
            )
    return candles


def _csv(place: _Place, style: ArchiveStyle) -> bytes:
    header_from_ms, us_from_ms = style.changes_ms(place.part.key.market)
    rows = wire_columns(_with_faults(place), place.series.padding).with_columns(pl.lit("0").alias("ignore"))
    if us_from_ms is not None:
        opened, closed = pl.col("open_time"), pl.col("close_time")
        late = pl.when(opened >= us_from_ms)
        rows = rows.with_columns(
            late.then(opened * 1000).otherwise(opened), late.then(closed * 1000 + 999).otherwise(closed)
        )
    named = rows.select(BINANCE_COLUMNS[: style.columns]).rename({"trades": "count"})  # its name there
    begin_ms = period_ms(place.part.kind, place.part.period)[0]
    header = header_from_ms is not None and begin_ms >= header_from_ms
    return named.write_csv(include_header=header).encode()
