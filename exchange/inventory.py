"""What the lake has of a series: range, holes with reasons, freshness, where it came from, what it weighs."""

from collections.abc import Mapping
from dataclasses import dataclass

from exchange.outages import known_outage
from storage.lake import Lake
from storage.ledger import Failure, Hole, Ledger
from storage.schema import SeriesKey

__all__ = ["Inventory", "take_inventory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """One series of the lake."""

    key: SeriesKey
    rows: int
    first_ms: int
    last_ms: int
    holes: tuple[Hole, ...]
    """Inside the series, oldest first."""
    repaired: int
    """Holes that were filled later."""
    names: Mapping[int, str]
    """The publicly known outage behind a hole, by the hole's start."""
    tail: Hole | None
    """What the exchange did not have at the end when it was last asked."""
    behind: int
    """Candles that have closed since the last one."""
    last_source: str
    bytes: int
    failures: tuple[Failure, ...]

    def count(self, status: str) -> int:
        """Holes with a status; stale is the one at the end."""
        if status == "stale":
            return int(self.tail is not None)
        return self.repaired if status == "repaired" else sum(hole.status == status for hole in self.holes)


def take_inventory(lake: Lake, ledger: Ledger, key: SeriesKey, *, now_ms: int) -> Inventory:
    """What there is of a series. One that the lake does not have is a LakeError."""
    if (span := lake.span(key)) is None:
        lake.read(key)  # raises, and says what to do
    assert span is not None
    holes = ledger.holes(key, lake.open_times(key))
    names = {
        hole.start_ms: outage.name
        for hole in holes
        if (outage := known_outage(key.market, hole.start_ms, hole.end_ms, key.interval))
    }
    next_ms = key.interval.next(span.last_ms)
    return Inventory(
        key=key,
        rows=span.rows,
        first_ms=span.first_ms,
        last_ms=span.last_ms,
        holes=tuple(holes),
        repaired=sum(mark.status == "repaired" for mark in ledger.marks(key)),
        names=names,
        tail=ledger.tail(key),
        behind=key.interval.count(next_ms, key.interval.floor(now_ms) - 1) if now_ms > next_ms else 0,
        last_source=_source_of(ledger, key, span.last_ms),
        bytes=sum(path.stat().st_size for path in lake.files(key).values()),
        failures=tuple(ledger.failures(key)),
    )


def _source_of(ledger: Ledger, key: SeriesKey, open_ms: int) -> str:
    """Kind and detail of the part that brought a candle; of several the one recorded last."""
    covering = [part for part in ledger.parts(key) if part.first_ms <= open_ms <= part.last_ms]
    if not covering:
        return "unknown"
    source = max(covering, key=lambda part: part.recorded_ms).source
    return f"{source.kind} {source.detail}"
