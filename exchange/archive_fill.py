"""Fill a series from the bulk archive: which zips, their candles into the lake, their days checked.

A month whose days are short is compared with the files of those days: they win, and the REST API is asked for
these days too, whose word is the last. A part that fails falls to the next source and is noted in the ledger.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl

from exchange.archive import ArchiveClient, ArchivePart, FetchedPart
from exchange.archive_parts import period_ms
from exchange.errors import ExchangeError, NotYetPublished
from exchange.plan import Fetch, expected_parts, plan, requests_of
from exchange.stretches import Stretch, joined, shared
from storage.lake import Lake
from storage.ledger import Failure, Ledger, Source
from storage.schema import CANDLE_SCHEMA, SeriesKey

__all__ = ["Harvest"]

LISTING_REQUESTS = 2  # months and days

Suspects = dict[str, tuple[str, list[Stretch]]]  # by day: the name of its month, and what was wanted of it

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Harvest:
    """The archive's share of one sync. `store` takes validated candles with their sources."""

    archive: ArchiveClient
    lake: Lake
    ledger: Ledger
    key: SeriesKey
    now_ms: int
    rest: bool
    """Whether REST stands behind the archive; without it every part is taken, whatever it costs."""
    store: Callable[[list[tuple[pl.DataFrame, Source]]], object]
    advance: Callable[[int], object]
    """Told how many of the asked candles a step has dealt with."""
    zips: int = 0
    """Parts whose candles were taken."""
    failed: list[str] = field(default_factory=list)
    """Names of parts that could not be used as they were."""
    disputed: list[Stretch] = field(default_factory=list)
    """Days on which a month and a day of the archive differ: REST is the judge."""

    def plan(self, missing: Sequence[Stretch]) -> list[Fetch]:
        """The steps to what is missing; the archive is asked what it has only if it would spare requests."""
        over_rest = plan(missing, self.key, ())
        hoped = plan(missing, self.key, self._expected(missing, surely=False))
        if requests_of(over_rest) - requests_of(hoped) <= LISTING_REQUESTS:
            return over_rest
        return plan(missing, self.key, self._published(missing))

    def run(self, fetches: Sequence[Fetch]) -> list[Stretch]:
        """Take the zips of a plan; returns what is left for REST: its own steps and what failed."""
        fallen, suspects = self._take(fetches)
        days = [part for part in self._expected(fallen, surely=True) if part.kind == "daily"]
        again = plan(fallen, self.key, days, rest=self.rest)
        left = _over_rest(fetches) + _over_rest(again) + self._take(again)[0]
        self._compare_days(suspects)
        return joined(left)

    def _published(self, missing: Sequence[Stretch]) -> list[ArchivePart]:
        """What the archive lists where something is missing, or promises if it does not list."""
        try:
            parts = self.archive.list_parts(self.key, kinds=("monthly",), start_ms=missing[0][0])
            stretches = _over_rest(plan(missing, self.key, parts))
            hoped = plan(stretches, self.key, self._expected(stretches, surely=False))
            if any(fetch.part for fetch in hoped):
                parts += self.archive.list_parts(self.key, kinds=("daily",), start_ms=stretches[0][0])
        except ExchangeError as error:
            logger.warning("%s: the archive's listing is left out: %s", self.key, error)
            return self._expected(missing, surely=True)
        return parts

    def _expected(self, missing: Sequence[Stretch], *, surely: bool) -> list[ArchivePart]:
        url = self.archive.config.archive_url
        return expected_parts(self.key, missing, self.now_ms, archive_url=url, surely=surely)

    def _take(self, fetches: Sequence[Fetch]) -> tuple[list[Stretch], Suspects]:
        """Store the candles of zips; what fell through, and the days of which a month has too few."""
        steps = {fetch.part.name: fetch for fetch in fetches if fetch.part}
        lasts = {part.period[:7]: part.name for part in _parts(fetches)}
        fallen: list[Stretch] = []
        suspects: Suspects = {}
        pending: list[tuple[FetchedPart, Sequence[Stretch]]] = []  # of one month, whose file is written once

        def on_part(part: ArchivePart, outcome: FetchedPart | ExchangeError) -> None:
            wanted = steps[part.name].stretches
            if isinstance(outcome, ExchangeError):
                self._fail(part.name, str(outcome))
                fallen.extend(wanted)
            else:
                pending.append((outcome, wanted))
                if part.kind == "monthly":
                    suspects.update(_short_days(outcome, wanted))
            if part.name == lasts[part.period[:7]]:
                self._put(pending)

        try:
            self.archive.fetch_many(_parts(fetches), on_part=on_part)
        finally:
            self._put(pending)
        return fallen, suspects

    def _put(self, pending: list[tuple[FetchedPart, Sequence[Stretch]]]) -> None:
        """Store parts of one month, each as far as it is wanted, and empty the list."""
        fetched = pending.copy()
        pending.clear()
        parts = [(_within(one.candles, wanted), one.source) for one, wanted in fetched]
        self.zips += len(parts)
        if held := [(candles, source) for candles, source in parts if not candles.is_empty()]:
            self.store(held)
        wanted = [stretch for _, stretches in fetched for stretch in stretches]
        self.advance(sum(self.key.interval.count(start, end - 1) for start, end in wanted))

    def _compare_days(self, suspects: Suspects) -> None:
        """Hold the short days of months against the files of those days; where they differ the days win."""
        differ: dict[str, list[str]] = {}

        def on_part(part: ArchivePart, outcome: FetchedPart | ExchangeError) -> None:
            month, wanted = suspects[part.period]
            if isinstance(outcome, ExchangeError):
                if not isinstance(outcome, NotYetPublished):
                    self._fail(part.name, str(outcome))
                return
            theirs = _within(outcome.candles, wanted)
            if not theirs.equals(self._stored(wanted)):
                self.zips += 1
                if not theirs.is_empty():
                    self.store([(theirs, outcome.source)])
                self.disputed += wanted
                differ.setdefault(month, []).append(part.period)

        parts = [self.archive.part(self.key, "daily", day) for day in suspects]
        self.archive.fetch_many(parts, on_part=on_part)
        for month, days in differ.items():
            expected = f"{month}: expected the candles that the files of its days have"
            self._fail(month, f"{expected}, found others on {', '.join(days)}; those of the days were taken.")

    def _stored(self, stretches: Sequence[Stretch]) -> pl.DataFrame:
        if not self.lake.files(self.key):
            return pl.DataFrame(schema=CANDLE_SCHEMA)
        return _within(self.lake.read(self.key, stretches[0][0], stretches[-1][1]), stretches)

    def _fail(self, name: str, reason: str) -> None:
        logger.warning("%s: %s", self.key, reason)
        self.failed.append(name)
        self.ledger.fail(self.key, Failure(name, reason, time.time_ns() // 1_000_000))


def _over_rest(fetches: Iterable[Fetch]) -> list[Stretch]:
    return [stretch for fetch in fetches if fetch.part is None for stretch in fetch.stretches]


def _parts(fetches: Iterable[Fetch]) -> list[ArchivePart]:
    """The zips of a plan, in the order in which they come."""
    return sorted((fetch.part for fetch in fetches if fetch.part), key=lambda part: part.order)


def _within(candles: pl.DataFrame, stretches: Sequence[Stretch]) -> pl.DataFrame:
    opened = pl.col("open_time").dt.epoch("ms")
    first_ms, last_ms = stretches[0][0], stretches[-1][1]
    if len(stretches) == 1 and len(candles):
        times = candles["open_time"].dt.epoch("ms")
        if first_ms <= times[0] and times[-1] < last_ms:
            return candles
    inside = [(opened >= start) & (opened < end) for start, end in stretches]
    return candles.filter(pl.any_horizontal(inside))


def _short_days(fetched: FetchedPart, wanted: Sequence[Stretch]) -> Suspects:
    """The wanted days with too few candles. Those before a part's first candle or after its last are left to
    REST: mostly the market had not begun, or had ended."""
    held = sorted(fetched.day_counts)
    short = (day for day in fetched.short_days if held[0] <= day <= held[-1])
    days = ((day, shared(wanted, period_ms("daily", day))) for day in short)
    return {day: (fetched.part.name, stretches) for day, stretches in days if stretches}
