"""Bring one series of the lake up to date: only what is missing, exact, and safe to interrupt.

What is missing is what the lake does not hold and the exchange has not confirmed to be empty. A stretch that
was asked for by itself, while later candles exist, and for which nothing came, is marked as an outage in the
ledger. An answer may have left it out by mistake: a later ingest asks once more, and then never again. So the
same rule continues an interrupted download, extends a series at either end, and refills a file that was deleted.

What is missing comes out of the bulk archive where that is cheaper (see exchange.plan), else over REST.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

from exchange.archive import ArchiveClient
from exchange.archive_fill import Harvest
from exchange.errors import GeoBlocked, NoCandles
from exchange.plan import plan
from exchange.rest import RestClient
from exchange.stretches import Stretch, joined, without
from storage.lake import Lake
from storage.ledger import Hole, Ledger, Source, find_holes
from storage.schema import SeriesKey, utc_text, validate_candles

__all__ = ["SyncReport", "sync_series"]

FLUSH_PAGES = (
    20  # a killed process loses at most so many pages; more would rewrite months of 1m candles more often
)
DAY_MS = 86_400_000  # a younger hole may still be filled by the exchange: it stays open
ATTEMPTS = 2  # asked so often an outage is final
ASK_AGAIN_MS = 3_600_000  # later: what makes an answer leave candles out takes seconds, or minutes
STALE_CANDLES = 3  # so many missing at the end are no mere delay

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What a sync did, and the series as it is in the lake now."""

    key: SeriesKey
    requests: int
    """Requests to the REST API of every kind, repeated ones included."""
    zips: int
    """Parts of the bulk archive whose candles were taken."""
    failed_parts: tuple[str, ...]
    """Parts of the bulk archive that could not be used as they were; the ledger says why."""
    added: int
    """Candles that the lake did not have before."""
    first_ms: int
    last_ms: int
    """Open times of the first and the last candle of the series."""
    rows: int

    @property
    def up_to_date(self) -> bool:
        """Nothing was missing or new."""
        return self.added == 0


def sync_series(
    client: RestClient,
    lake: Lake,
    ledger: Ledger,
    key: SeriesKey,
    *,
    archive: ArchiveClient | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> SyncReport:
    """Fetch the closed candles with start_ms <= open_time < end_ms that the lake does not have.

    Without a start from the listing on, without an end up to the last candle that is closed by the exchange's
    clock. `progress` is told candles done and candles in all. Raises NoCandles where the range holds none.
    Where the REST API does not serve this location the archive alone is asked, if there is one.
    """
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise ValueError(
            f"Expected an end after the start, found start {utc_text(start_ms)} and end {utc_text(end_ms)}; "
            "swap or move them."
        )
    asked_before = client.requests
    server_ms = _server_ms(client, archive)
    with lake.writing(key):
        span = lake.span(key)
        sync = _Sync(
            client=client,
            archive=archive,
            lake=lake,
            ledger=ledger,
            key=key,
            progress=progress,
            server_ms=server_ms or 0,
            extent=(span.first_ms, span.last_ms) if span else None,
        )
        harvest = sync.run(start_ms, end_ms) if server_ms else sync.run_archive(start_ms, end_ms)
        span = lake.span(key)
    assert span is not None, "a sync that found nothing has raised"
    return SyncReport(
        key=key,
        requests=client.requests - asked_before,
        zips=harvest.zips if harvest else 0,
        failed_parts=tuple(harvest.failed) if harvest else (),
        added=sync.added,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        rows=span.rows,
    )


def _server_ms(client: RestClient, archive: ArchiveClient | None) -> int | None:
    """The exchange's clock; None where its API serves nobody at this location and the archive has to do."""
    try:
        return client.server_time_ms()
    except GeoBlocked as error:
        if archive is None:
            raise
        logger.warning("%s The bulk archive alone is asked: the latest candles will be missing.", error)
        return None


@dataclass(kw_only=True, slots=True)
class _Sync:
    """One sync at work. `extent` are the first and the last open time in the lake, as it grows."""

    client: RestClient
    archive: ArchiveClient | None
    lake: Lake
    ledger: Ledger
    key: SeriesKey
    progress: Callable[[int, int], object]
    server_ms: int
    extent: Stretch | None
    added: int = 0
    done: int = 0
    total: int = 0
    asked: set[Stretch] = field(default_factory=set)
    """Stretches that REST was asked for, each by itself."""

    def run(self, start_ms: int | None, end_ms: int | None) -> Harvest | None:
        """Bring what is missing; returns the archive's share, if there was one."""
        asked_end_ms = end_ms
        start_ms, end_ms = self._range(start_ms, end_ms)
        missing = self._missing(start_ms, end_ms)
        holes = [part for part in missing if self._inside(part)]
        self.total = sum(self._count(part) for part in missing)
        harvest = self._harvest(self.server_ms, rest=True) if missing and self.archive else None
        left = harvest.run(harvest.plan(missing)) if harvest else missing
        for part in left:
            self._fetch(part)
            self._advance(self._count(part))
        for part in joined(harvest.disputed) if harvest else ():
            self._fetch(part)
        self.progress(self.total, self.total)
        self._settle(missing)
        for part in holes:
            if not self._absent(*part):
                self.ledger.mark(self.key, self._hole(part), "repaired")
        if self.added == 0 and next(self.lake.open_times(self.key, start_ms, end_ms), None) is None:
            raise self._none_between(start_ms, end_ms, self.client.first_open_ms(self.key))
        if asked_end_ms is None:  # has the exchange stopped to continue the series?
            assert self.extent is not None
            tail = self._hole((self.key.interval.next(self.extent[1]), end_ms))
            self.ledger.set_tail(self.key, tail if tail.candles >= STALE_CANDLES else None)
        return harvest

    def run_archive(self, start_ms: int | None, end_ms: int | None) -> Harvest:
        """Bring what the archive has, without the REST API: holes stay open."""
        harvest = self._harvest(0, rest=False)
        published = harvest.archive.list_parts(self.key, start_ms=start_ms)
        parts = [part for part in published if end_ms is None or part.first_ms < end_ms]
        if not parts:
            raise NoCandles(
                f"Expected candles of {self.key} in the bulk archive, found none in that range; "
                "it has the days until yesterday at most."
            )
        start_ms = parts[0].first_ms if start_ms is None else start_ms
        closed_ms = harvest.now_ms = max(self.key.interval.next(part.last_ms) for part in parts)
        missing = self._missing(start_ms, min(closed_ms, closed_ms if end_ms is None else end_ms))
        self.total = sum(self._count(part) for part in missing)
        harvest.run(plan(missing, self.key, parts, rest=False))
        self.progress(self.total, self.total)
        if self.extent is None:
            raise NoCandles(
                f"Expected candles of {self.key} in the bulk archive, found that no part can be used; "
                "the ledger says why, try again later."
            )
        return harvest

    def _harvest(self, now_ms: int, *, rest: bool) -> Harvest:
        assert self.archive is not None
        return Harvest(
            archive=self.archive,
            lake=self.lake,
            ledger=self.ledger,
            key=self.key,
            now_ms=now_ms,
            rest=rest,
            store=self._store,
            advance=self._advance,
        )

    def _advance(self, candles: int) -> None:
        self.done += candles
        self.progress(self.done, self.total)

    def _range(self, start_ms: int | None, end_ms: int | None) -> Stretch:
        """The whole candles to have in the end, as [start, end)."""
        interval = self.key.interval
        closed_ms = interval.floor(self.server_ms)
        end_ms = closed_ms if end_ms is None else interval.next(interval.floor(min(end_ms, closed_ms) - 1))
        if start_ms is not None:
            start_ms = interval.next(interval.floor(start_ms - 1))
            if start_ms >= end_ms:
                raise NoCandles(
                    f"Expected a whole {interval} candle of {self.key} from {utc_text(start_ms)} on, found "
                    f"that none is closed before {utc_text(end_ms)} (the exchange's clock says "
                    f"{utc_text(self.server_ms)}); move the range."
                )
            return start_ms, end_ms
        listing_ms = self._listing_ms()
        if listing_ms >= end_ms:
            raise self._none_between(None, end_ms, listing_ms)
        return listing_ms, end_ms

    def _none_between(self, start_ms: int | None, end_ms: int, listing_ms: int) -> NoCandles:
        since = "" if start_ms is None else f" from {utc_text(start_ms)} on"
        return NoCandles(
            f"Expected closed candles of {self.key}{since} before {utc_text(end_ms)}, found none; "
            f"Binance has them since {utc_text(listing_ms)}, move the range."
        )

    def _listing_ms(self) -> int:
        """Open time of the first candle there is: asked once, then known from the ledger."""
        for known in self._outages():
            if known.start_ms == 0:
                return known.end_ms
        listing_ms = self.key.interval.floor(self.client.first_open_ms(self.key))
        before = self._hole((0, listing_ms))
        self.ledger.mark(self.key, before, "outage", attempts=ATTEMPTS, asked_ms=self.server_ms)
        logger.info("%s: listed since %s", self.key, utc_text(listing_ms))
        return listing_ms

    def _fetch(self, part: Stretch) -> None:
        """Pages of a stretch into the lake; what has come is kept when the rest fails."""
        self.asked.add(part)
        pending: list[pl.DataFrame] = []
        try:
            for page in self.client.pages(self.key, *part, server_ms=self.server_ms):
                pending.append(page)
                if len(pending) == FLUSH_PAGES:
                    self._flush(pending)
                ahead = self.key.interval.count(part[0], _open_ms(page, -1))
                self.progress(min(self.done + ahead, self.total), self.total)
        finally:
            self._flush(pending)

    def _flush(self, pending: list[pl.DataFrame]) -> None:
        if pending:
            candles = validate_candles(pl.concat(pending), self.key.interval, origin=f"{self.key} from pages")
            pending.clear()
            self._store([(candles, Source("rest", self.client.url))])

    def _store(self, parts: list[tuple[pl.DataFrame, Source]]) -> None:
        self.added += self.lake.put(self.key, parts).added
        for candles, _ in parts:
            times = [*(self.extent or ()), _open_ms(candles, 0), _open_ms(candles, -1)]
            self.extent = min(times), max(times)

    def _settle(self, missing: list[Stretch]) -> None:
        """Ask REST for every hole that is left, by itself; mark the confirmed ones."""
        waiting = [left for part in missing for left in self._left(part)]
        while waiting:
            left = waiting.pop()
            if left not in self.asked:
                self._fetch(left)
                waiting += self._left(left)
            elif left[1] <= self.server_ms - DAY_MS:
                self._mark_outage(left)

    def _left(self, part: Stretch) -> list[Stretch]:
        """What is still missing of a stretch, up to the last candle there is: later ones may still come."""
        border_ms = self.extent[1] if self.extent else 0
        return [(start, min(end, border_ms)) for start, end in self._missing(*part) if start < border_ms]

    def _missing(self, start_ms: int, end_ms: int) -> list[Stretch]:
        """The parts of [start, end) that are neither in the lake nor an outage, unless that is to be confirmed."""
        known = [
            (mark.start_ms, mark.end_ms)
            for mark in self._outages()
            if mark.attempts >= ATTEMPTS or self.server_ms - mark.asked_ms < ASK_AGAIN_MS
        ]
        return without(self._absent(start_ms, end_ms), known)

    def _absent(self, start_ms: int, end_ms: int) -> list[Stretch]:
        """The parts of [start, end) that are not in the lake."""
        absent: list[Stretch] = []
        at = start_ms
        for times in self.lake.open_times(self.key, start_ms, end_ms):
            inside = [(hole.start_ms, hole.end_ms) for hole in find_holes(times, self.key.interval)]
            absent += [(at, _open_ms(times, 0)), *inside]
            at = self.key.interval.next(_open_ms(times, -1))
        return [part for part in (*absent, (at, end_ms)) if part[0] < part[1]]

    def _inside(self, part: Stretch) -> bool:
        return self.extent is not None and self.extent[0] < part[0] and part[1] <= self.extent[1]

    def _outages(self) -> list[Hole]:
        return [mark for mark in self.ledger.marks(self.key) if mark.status == "outage"]

    def _mark_outage(self, part: Stretch) -> None:
        """Mark a stretch together with the outages that it touches: one mark covers the whole hole."""
        (start_ms, end_ms), attempts = part, 1
        for known in self._outages():
            if known.start_ms <= part[0] and part[1] <= known.end_ms:
                attempts = max(attempts, known.attempts + 1)
            if known.start_ms <= end_ms and start_ms <= known.end_ms:
                start_ms, end_ms = min(start_ms, known.start_ms), max(end_ms, known.end_ms)
        hole = self._hole((start_ms, end_ms))
        self.ledger.mark(self.key, hole, "outage", attempts=attempts, asked_ms=self.server_ms)
        told = self.key, utc_text(start_ms), utc_text(end_ms), attempts
        logger.info("%s: outage from %s to %s, asked for in %d ingests", *told)

    def _hole(self, part: Stretch) -> Hole:
        return Hole(*part, candles=self._count(part))

    def _count(self, part: Stretch) -> int:
        return self.key.interval.count(part[0], part[1] - 1)


def _open_ms(candles: pl.DataFrame, row: int) -> int:
    return int(candles["open_time"].dt.epoch("ms")[row])
