"""One replayed series: which candles are visible at a time, and the candle that is still forming.

What the data does not have is filled as follows: a null quote_volume becomes
volume * (open + high + low + close) / 4, null trades become 0, null taker columns become 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from exchange.replay.encoding import DECIMAL_COLUMNS, MOST_DECIMALS, json_rows, precision_of
from storage.interval import Interval
from storage.schema import CANDLE_SCHEMA, Market

__all__ = ["Bar", "KlineRows", "ReplaySeries"]

BLOCK_ROWS = 4096
CACHED_BLOCKS = 64  # of about 600 kB each
DAY_MS = 86_400_000


class Bar(NamedTuple):
    """The numbers of one candle."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    trades: int
    taker_buy_volume: float
    taker_buy_quote_volume: float

    @classmethod
    def merge(cls, bars: "Sequence[Bar]", precision: Mapping[str, int]) -> Self:
        """The candle that spans some candles; sums are rounded to the decimals that their parts have."""
        opens, highs, lows, closes, *amounts = zip(*bars, strict=True)
        sums = [
            round(sum(amount), precision.get(name))  # trades have no decimals and stay whole
            for name, amount in zip(cls._fields[4:], amounts, strict=True)
        ]
        return cls(opens[0], max(highs), min(lows), closes[-1], *sums)


@dataclass(frozen=True, slots=True)
class KlineRows:
    """The rows of one answer, oldest first, as JSON joined by commas."""

    joined: bytes
    count: int

    @property
    def body(self) -> bytes:
        """The answer as it is sent."""
        return b"[" + self.joined + b"]"

    @property
    def rows(self) -> list[bytes]:
        """Each row by itself. No string in a row holds a bracket, so splitting is exact."""
        return [b"[" + row + b"]" for row in self.joined[1:-1].split(b"],[")] if self.count else []


class ReplaySeries:
    """Candles of one market, symbol and interval. Rows are encoded in blocks, when first asked for."""

    def __init__(
        self,
        candles: pl.DataFrame,
        interval: Interval,
        market: Market,
        *,
        finer: "ReplaySeries | None" = None,
    ) -> None:
        self.interval = interval
        self.market = market
        self.estimated = candles["quote_volume"].null_count()
        self.candles = _filled(candles)
        self.open_ms: NDArray[np.int64] = self.candles["open_time"].dt.epoch("ms").to_numpy()
        self.close_ms: NDArray[np.int64] = self.candles["close_time"].dt.epoch("ms").to_numpy()
        self.precision = precision_of(self.candles)
        self.padding = self.precision if market == "um" else dict.fromkeys(self.precision, MOST_DECIMALS)
        self._finer = finer
        self._block = lru_cache(maxsize=CACHED_BLOCKS)(self._encode)

    def page(self, start_ms: int | None, end_ms: int | None, *, limit: int, now_ms: int) -> KlineRows:
        """Up to `limit` candles that open within [start, end] and have opened by now.

        From the oldest on if a start is given, else the newest. The last one may still be forming.
        """
        closed = int(np.searchsorted(self.close_ms, now_ms))
        visible = int(np.searchsorted(self.open_ms, now_ms, side="right"))
        first = 0 if start_ms is None else int(np.searchsorted(self.open_ms, start_ms))
        last = visible if end_ms is None else int(np.searchsorted(self.open_ms, end_ms, side="right"))
        last = min(last, visible)
        if start_ms is None:
            first = max(first, last - limit)
        else:
            last = min(last, first + limit)
        if first >= last:
            return KlineRows(b"", 0)
        parts = self._finished(first, min(last, closed))
        if last > closed and (forming := self.forming(now_ms)) is not None:
            parts.append(self._encode_bar(*forming))
        return KlineRows(b",".join(parts), last - first)

    def forming(self, now_ms: int) -> tuple[int, Bar] | None:
        """Row and state of the candle that is open now, if the data has it."""
        row = int(np.searchsorted(self.close_ms, now_ms))
        if row == len(self.open_ms) or self.open_ms[row] > now_ms:
            return None
        start_ms = int(self.open_ms[row])
        if self._finer is not None:
            return row, Bar.merge(self._finer.bars_since(start_ms, now_ms), self._finer.precision)
        done = (now_ms - start_ms) / (int(self.close_ms[row]) + 1 - start_ms)
        return row, self._partial(self._bars(row, row + 1)[0], done)

    def bars_since(self, start_ms: int, now_ms: int) -> list[Bar]:
        """Every visible candle that opens at or after `start_ms`, the forming one included."""
        first = int(np.searchsorted(self.open_ms, start_ms))
        closed = int(np.searchsorted(self.close_ms, now_ms))
        finished = self._bars(first, closed) if first < closed else []
        forming = self.forming(now_ms)
        return finished if forming is None or forming[0] < first else [*finished, forming[1]]

    def coarser(self, interval: Interval) -> "ReplaySeries":
        """The same market in a longer interval, exactly aggregated (sums keep the decimals of their parts).

        A last bucket that the data does not reach the end of is left out.
        """
        days, of_day = np.unique(self.open_ms // DAY_MS, return_inverse=True)
        if interval.milliseconds is not None and interval.milliseconds < DAY_MS:
            buckets = self.open_ms // interval.milliseconds * interval.milliseconds
        else:
            buckets = np.array([interval.floor(int(day) * DAY_MS) for day in days])[of_day]
        whole = interval.close(int(buckets[-1])) <= int(self.close_ms[-1])
        candles = self.candles.with_columns(pl.Series("open_time", buckets).cast(CANDLE_SCHEMA["open_time"]))
        first, last = pl.col("open").first(), pl.col("close").last()
        sums = [pl.col(name).sum().round(self.precision[name]) for name in DECIMAL_COLUMNS[4:]]
        merged = candles.group_by("open_time", maintain_order=True).agg(
            first, pl.col("high").max(), pl.col("low").min(), last, pl.col("trades").sum(), *sums
        )
        opens = merged["open_time"].dt.epoch("ms").to_list()
        closes = pl.Series("close_time", [interval.close(ms) for ms in opens], dtype=pl.Int64)
        merged = merged.with_columns(closes.cast(CANDLE_SCHEMA["close_time"])).select(*CANDLE_SCHEMA)
        return ReplaySeries(merged if whole else merged[:-1], interval, self.market, finer=self)

    def _finished(self, first: int, last: int) -> list[bytes]:
        """The rows [first, last), which are closed, as slices of encoded blocks."""
        parts: list[bytes] = []
        row = first
        while row < last:
            block = row // BLOCK_ROWS
            text, ends = self._block(block)
            offset = block * BLOCK_ROWS
            stop = min(last - offset, BLOCK_ROWS)
            begin = ends[row - offset - 1] + 1 if row > offset else 0
            parts.append(text[begin : ends[stop - 1]])
            row = offset + stop
        return parts

    def _encode(self, block: int) -> tuple[bytes, list[int]]:
        """JSON rows of one block joined by commas, and where each of them ends."""
        rows = json_rows(self.candles.slice(block * BLOCK_ROWS, BLOCK_ROWS), self.padding)
        sizes = rows.str.len_bytes().to_numpy().astype(np.int64)
        return ",".join(rows.to_list()).encode(), (np.cumsum(sizes + 1) - 1).tolist()

    def _encode_bar(self, row: int, bar: Bar) -> bytes:
        values = {name: pl.lit(value, CANDLE_SCHEMA[name]) for name, value in bar._asdict().items()}
        frame = self.candles.slice(row, 1).with_columns(**values)
        return bytes(json_rows(frame, self.padding)[0].encode())

    def _bars(self, first: int, last: int) -> list[Bar]:
        return [Bar(*row) for row in self.candles[first:last].select(Bar._fields).iter_rows()]

    def _partial(self, bar: Bar, done: float) -> Bar:
        """The candle after a share of its time: the price visits the extremes and ends at the close.

        A rising candle goes open, low, high, close in three straight legs of equal time, a falling one open,
        high, low, close; volume grows evenly. So every state is possible and later ones only extend it.
        """
        turns = (bar.low, bar.high) if bar.close >= bar.open else (bar.high, bar.low)
        knots = (bar.open, *turns, bar.close)
        price = float(np.interp(done * 3, range(4), knots))
        close = min(max(round(price, self.precision["close"]), bar.low), bar.high)
        seen = (*knots[: int(done * 3) + 1], close)
        places = self.precision
        return Bar(
            open=bar.open,
            high=max(seen),
            low=min(seen),
            close=close,
            volume=round(bar.volume * done, places["volume"]),
            quote_volume=round(bar.quote_volume * done, places["quote_volume"]),
            trades=int(bar.trades * done),
            taker_buy_volume=round(bar.taker_buy_volume * done, places["taker_buy_volume"]),
            taker_buy_quote_volume=round(bar.taker_buy_quote_volume * done, places["taker_buy_quote_volume"]),
        )


def _filled(candles: pl.DataFrame) -> pl.DataFrame:
    # The order of the operations is the dataset's, so that both estimates are the same float.
    estimate = pl.col("volume") * (pl.col("open") + pl.col("high") + pl.col("low") + pl.col("close")) / 4
    return candles.with_columns(
        pl.col("quote_volume").fill_null(estimate),
        pl.col("trades", "taker_buy_volume", "taker_buy_quote_volume").fill_null(0),
    )
