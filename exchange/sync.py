"""Bring one series of the lake up to date over REST: only what is missing, exact, and safe to interrupt.

What is missing is what the lake does not hold and the exchange has not confirmed to be empty. A stretch is
confirmed when it was asked for by itself, nothing came, and later candles exist; the ledger then marks it as
an outage, and it is never asked for again. So the same rule continues an interrupted download, extends a
series at either end, and refills a file that was deleted.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import polars as pl

from exchange.errors import NoCandles
from exchange.rest import RestClient
from storage.lake import Lake
from storage.ledger import Hole, Ledger, Source, find_holes
from storage.schema import CANDLE_SCHEMA, SeriesKey, utc_text

__all__ = ["SyncReport", "sync_series"]

FLUSH_PAGES = (
    20  # a killed process loses at most so many pages; more would rewrite months of 1m candles more often
)
READ_CANDLES = 500_000  # of a long series at a time: about 50 MB
NO_TIMES = pl.DataFrame(schema={"open_time": CANDLE_SCHEMA["open_time"]})
DAY_MS = 86_400_000  # a younger hole may still be filled by the exchange: it stays open

Stretch = tuple[int, int]  # candles that open in [start, end), ms
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What a sync did, and the series as it is in the lake now."""

    key: SeriesKey
    requests: int
    """HTTP requests of every kind, repeated ones included."""
    added: int
    """Candles that the lake did not have before."""
    first_ms: int
    """Open time of the first candle of the series."""
    last_ms: int
    """Open time of the last candle of the series."""
    rows: int
    """Candles in the series."""
    up_to_date: bool
    """Nothing was missing or new."""


def _no_progress(done: int, total: int) -> None:
    pass


def sync_series(
    client: RestClient,
    lake: Lake,
    ledger: Ledger,
    key: SeriesKey,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    progress: Callable[[int, int], object] = _no_progress,
) -> SyncReport:
    """Fetch the closed candles with start_ms <= open_time < end_ms that the lake does not have.

    Without a start from the listing on, without an end up to the last candle that is closed by the exchange's
    clock. `progress` is told candles done and candles in all. Raises NoCandles where the range holds none.
    """
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise ValueError(
            f"Expected an end after the start, found start {utc_text(start_ms)} and end {utc_text(end_ms)}; "
            "swap or move them."
        )
    asked_before = client.requests
    server_ms = client.server_time_ms()
    with lake.writing(key):
        span = lake.span(key)
        sync = _Sync(
            client=client,
            lake=lake,
            ledger=ledger,
            key=key,
            progress=progress,
            server_ms=server_ms,
            first_ms=span.first_ms if span else None,
            last_ms=span.last_ms if span else None,
        )
        sync.run(start_ms, end_ms)
        span = lake.span(key)
    assert span is not None, "a sync that found nothing has raised"
    return SyncReport(
        key=key,
        requests=client.requests - asked_before,
        added=sync.added,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        rows=span.rows,
        up_to_date=sync.added == 0,
    )


@dataclass(kw_only=True, slots=True)
class _Sync:
    """One sync at work. `first_ms` and `last_ms` are those of the lake, as it grows."""

    client: RestClient
    lake: Lake
    ledger: Ledger
    key: SeriesKey
    progress: Callable[[int, int], object]
    server_ms: int
    first_ms: int | None
    last_ms: int | None
    added: int = 0

    def run(self, start_ms: int | None, end_ms: int | None) -> None:
        start_ms, end_ms = self._range(start_ms, end_ms)
        asked = self._missing(start_ms, end_ms)
        holes = [part for part in asked if self._inside(part)]
        total = sum(self._count(part) for part in asked)
        done = 0
        for part in asked:
            self._fetch(part, partial(self._tell, done, total))
            done += self._count(part)
        self.progress(done, total)
        self._settle(asked)
        for part in holes:
            if not self._absent(*part):
                self.ledger.mark(self.key, self._hole(part), "repaired")
        if self.added == 0 and all(part.is_empty() for part in self._stored(start_ms, end_ms)):
            raise self._none_between(start_ms, end_ms, self.client.first_open_ms(self.key))

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
        for start_ms, end_ms in self._outages():
            if start_ms == 0:
                return end_ms
        listing_ms = self.key.interval.floor(self.client.first_open_ms(self.key))
        self._mark_outage((0, listing_ms))
        return listing_ms

    def _fetch(self, part: Stretch, advance: Callable[[int], object]) -> None:
        """Pages of a stretch into the lake; what has come is kept when the rest fails."""
        pending: list[pl.DataFrame] = []
        try:
            for page in self.client.pages(self.key, *part, server_ms=self.server_ms):
                pending.append(page)
                if len(pending) == FLUSH_PAGES:
                    self._flush(pending)
                advance(self.key.interval.count(part[0], _open_ms(page, -1)))
        finally:
            self._flush(pending)

    def _flush(self, pending: list[pl.DataFrame]) -> None:
        if not pending:
            return
        candles = pl.concat(pending)
        pending.clear()
        source = Source("rest", self.client.url)
        self.added += self.lake.upsert(self.key, candles, source=source).added
        first_ms, last_ms = _open_ms(candles, 0), _open_ms(candles, -1)
        self.first_ms = first_ms if self.first_ms is None else min(self.first_ms, first_ms)
        self.last_ms = last_ms if self.last_ms is None else max(self.last_ms, last_ms)

    def _tell(self, done: int, total: int, ahead: int) -> None:
        self.progress(done + ahead, total)

    def _settle(self, asked: list[Stretch]) -> None:
        """Ask again for every hole that the answers left, by itself; mark the confirmed ones."""
        waiting = [(part, left) for part in asked for left in self._left(part)]
        while waiting:
            part, left = waiting.pop()
            if left != part:
                self._fetch(left, lambda ahead: None)
                waiting += [(left, rest) for rest in self._left(left)]
            elif left[1] <= self.server_ms - DAY_MS:
                self._mark_outage(left)

    def _left(self, part: Stretch) -> list[Stretch]:
        """What is still missing of a stretch, up to the last candle there is: later ones may still come."""
        border_ms = self.last_ms or 0
        return [(start, min(end, border_ms)) for start, end in self._missing(*part) if start < border_ms]

    def _missing(self, start_ms: int, end_ms: int) -> list[Stretch]:
        """The parts of [start, end) that are neither in the lake nor confirmed to be empty."""
        return _without(self._absent(start_ms, end_ms), self._outages())

    def _absent(self, start_ms: int, end_ms: int) -> list[Stretch]:
        """The parts of [start, end) that are not in the lake."""
        times = pl.concat([NO_TIMES, *self._stored(start_ms, end_ms)])
        if times.is_empty():
            return [(start_ms, end_ms)]
        interval = self.key.interval
        holes = [(hole.start_ms, hole.end_ms) for hole in find_holes(times, interval)]
        head = (start_ms, _open_ms(times, 0))
        tail = (interval.next(_open_ms(times, -1)), end_ms)
        return [part for part in (head, *holes, tail) if part[0] < part[1]]

    def _stored(self, start_ms: int, end_ms: int) -> Iterator[pl.DataFrame]:
        """Open times in the lake within [start, end), a part at a time."""
        if self.first_ms is None or self.last_ms is None:
            return
        step = READ_CANDLES * (self.key.interval.milliseconds or 28 * DAY_MS)
        end_ms = min(end_ms, self.last_ms + 1)
        for at in range(max(start_ms, self.first_ms), end_ms, step):
            yield self.lake.read(self.key, at, min(at + step, end_ms)).select("open_time")

    def _inside(self, part: Stretch) -> bool:
        return (
            self.first_ms is not None
            and self.last_ms is not None
            and self.first_ms < part[0]
            and part[1] <= self.last_ms
        )

    def _outages(self) -> list[Stretch]:
        marks = self.ledger.marks(self.key)
        return [(mark.start_ms, mark.end_ms) for mark in marks if mark.status == "outage"]

    def _mark_outage(self, part: Stretch) -> None:
        """Mark a stretch together with the outages that it touches: one mark covers the whole hole."""
        start_ms, end_ms = part
        for known in self._outages():
            if known[0] <= end_ms and start_ms <= known[1]:
                start_ms, end_ms = min(start_ms, known[0]), max(end_ms, known[1])
        self.ledger.mark(self.key, self._hole((start_ms, end_ms)), "outage")
        if start_ms == 0:
            logger.info("%s: listed since %s", self.key, utc_text(end_ms))
        else:
            logger.info("%s: outage from %s to %s", self.key, utc_text(start_ms), utc_text(end_ms))

    def _hole(self, part: Stretch) -> Hole:
        return Hole(*part, candles=self._count(part))

    def _count(self, part: Stretch) -> int:
        return self.key.interval.count(part[0], part[1] - 1)


def _open_ms(candles: pl.DataFrame, row: int) -> int:
    return int(candles["open_time"].dt.epoch("ms")[row])


def _without(stretches: list[Stretch], known: list[Stretch]) -> list[Stretch]:
    """The stretches less the known ones, in order."""
    left: list[Stretch] = []
    for start, end in stretches:
        for known_start, known_end in sorted(known):
            if known_end <= start or end <= known_start:
                continue
            if start < known_start:
                left.append((start, known_start))
            start = known_end
        if start < end:
            left.append((start, end))
    return left
