"""Where to fetch what is missing: months and days of the bulk archive where they spare requests, else REST.

A zip and its checksum are two requests, however many candles it holds, and weigh nothing; a page of the REST
API is one. So a month of 1m comes as a zip (45 or 90 pages), a month of 1h as a page or two that it shares
with its neighbours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exchange.archive_parts import DAY_MS, ArchivePart, PartKind, kinds_of, period_ms, periods
from exchange.klines import PAGE_LIMITS
from exchange.stretches import Stretch, joined, shared, without
from storage.schema import SeriesKey

__all__ = ["ZIP_REQUESTS", "Fetch", "expected_parts", "plan", "requests_of"]

ZIP_REQUESTS = 2  # the zip and its CHECKSUM
# As binance-public-data's README promises.
SURELY_PUBLISHED_MS: dict[PartKind, int] = {"monthly": 9 * DAY_MS, "daily": 2 * DAY_MS}


@dataclass(frozen=True, slots=True)
class Fetch:
    """One step: the candles of some stretches, out of a part of the archive or in pages over REST."""

    stretches: tuple[Stretch, ...]
    part: ArchivePart | None
    """None: over REST."""
    requests: int


def plan(
    missing: Sequence[Stretch], key: SeriesKey, published: Iterable[ArchivePart], *, rest: bool = True
) -> list[Fetch]:
    """The cheapest way to the missing candles, by time; every one of them is in exactly one step.

    Months before days before REST, each where it costs fewer requests than REST would; without `rest`
    wherever it is published.
    """
    parts = list(published)
    left = joined(missing)
    fetches: list[Fetch] = []
    for kind in kinds_of(key.interval):
        for part in sorted((one for one in parts if one.kind == kind), key=lambda one: one.first_ms):
            wanted = shared(left, (part.first_ms, key.interval.next(part.last_ms)))
            if wanted and (not rest or _pages(wanted, left, key) > ZIP_REQUESTS):
                fetches.append(Fetch(tuple(wanted), part, ZIP_REQUESTS))
                left = without(left, wanted)
    fetches += [Fetch((stretch,), None, math.ceil(_pages([stretch], left, key))) for stretch in left]
    return sorted(fetches, key=lambda fetch: fetch.stretches)


def requests_of(fetches: Iterable[Fetch]) -> int:
    return sum(fetch.requests for fetch in fetches)


def expected_parts(
    key: SeriesKey, missing: Sequence[Stretch], now_ms: int, *, archive_url: str, surely: bool
) -> list[ArchivePart]:
    """The parts that the calendar promises for some stretches: all whose period is over or, if `surely`, is
    over for so long that the part should be published."""
    parts: dict[str, ArchivePart] = {}
    for kind in kinds_of(key.interval):
        delay_ms = SURELY_PUBLISHED_MS[kind] if surely else 0
        for start_ms, end_ms in missing:
            for period in periods(kind, start_ms, min(end_ms, now_ms)):
                if period_ms(kind, period)[1] + delay_ms <= now_ms:
                    part = ArchivePart.of(key, kind, period, archive_url=archive_url)
                    parts[part.name] = part
    return [part for part in parts.values() if part.first_ms <= part.last_ms]


def _pages(wanted: Sequence[Stretch], left: Sequence[Stretch], key: SeriesKey) -> float:
    """Pages that stretches cost over REST; a piece of a longer one shares its first and its last page."""
    limit = PAGE_LIMITS[key.market]
    pages = 0.0
    for start, end in wanted:
        share = key.interval.count(start, end - 1) / limit
        pages += max(1, math.ceil(share)) if (start, end) in left else share
    return pages
