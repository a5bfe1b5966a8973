"""What a monitor knows of its series at a moment, for screens and files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, Self

import polars as pl

from storage.schema import SeriesKey

__all__ = ["Candle", "Connection", "MonitorState", "SeriesState", "Ticker"]

Connection = Literal["connecting", "streaming", "polling", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candle:
    """A candle in numbers; the last two are missing where the source has none."""

    open_ms: int
    close_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None
    trades: int | None

    @classmethod
    def last_of(cls, candles: pl.DataFrame) -> Self:
        times = [pl.col(f"{which}_time").dt.epoch("ms").alias(f"{which}_ms") for which in ("open", "close")]
        row = candles.tail(1).with_columns(times).row(0, named=True)
        return cls(**{one.name: row[one.name] for one in fields(cls)})

    def as_json(self) -> dict[str, Any]:
        """With ISO times."""
        numbers = {one.name: getattr(self, one.name) for one in fields(Candle)}
        times = {"open_time": _iso(numbers.pop("open_ms")), "close_time": _iso(numbers.pop("close_ms"))}
        return times | numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticker:
    """The last 24 hours."""

    last: float
    change_percent: float
    high: float
    low: float
    volume: float
    quote_volume: float

    @classmethod
    def of_answer(cls, answer: Mapping[str, Any]) -> Self:
        """From the exchange's 24 h ticker."""
        return cls(
            last=float(answer["lastPrice"]),
            change_percent=float(answer["priceChangePercent"]),
            high=float(answer["highPrice"]),
            low=float(answer["lowPrice"]),
            volume=float(answer["volume"]),
            quote_volume=float(answer["quoteVolume"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesState:
    """One series now."""

    key: SeriesKey
    connection: Connection
    last: Candle | None
    """The last closed candle."""
    forming: Candle | None
    """The candle that is open, as far as the stream told."""
    ticker: Ticker | None
    next_close_ms: int | None
    """When the next candle closes, in ms; it opens no earlier than the last one closed."""
    added: int
    """Candles that came since the start and were not in the lake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorState:
    """Everything a monitor shows."""

    series: tuple[SeriesState, ...]
    exchange_ms: int
    """The exchange's clock, as of its last message."""
    connects: int
    """WebSocket connections so far."""
    last_error: str
    """What went wrong last; empty if nothing did."""

    def as_json(self) -> dict[str, Any]:
        """For files; times are ISO, UTC."""
        return {
            "version": 1,
            "exchange_time": _iso(self.exchange_ms),
            "connects": self.connects,
            "last_error": self.last_error,
            "series": [
                {
                    "series": one.key.name,
                    "interval": one.key.interval.name,
                    "connection": one.connection,
                    "last": one.last and one.last.as_json(),
                    "forming": one.forming and one.forming.as_json(),
                    "ticker_24h": one.ticker and asdict(one.ticker),
                    "next_close": one.next_close_ms and _iso(one.next_close_ms),
                    "added": one.added,
                }
                for one in self.series
            ],
        }


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
