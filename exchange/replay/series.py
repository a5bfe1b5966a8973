"""One replayed series: which candles are visible at a time, and the candle that is still forming.

What the data does not have is filled as follows: a null quote_volume becomes
volume * (open + high + low + close) / 4, null trades become 0, null taker columns become 0.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from exchange.replay.encoding import DECIMAL_COLUMNS, MOST_DECIMALS, json_rows, precision_of
from storage.interval import Interval
from storage.schema import CANDLE_SCHEMA, Market, next_open

__all__ = ["KlineRows", "ReplaySeries"]

BLOCK_ROWS = 4096
CACHED_BLOCKS = 64  # of about 600 kB each


@dataclass(frozen=True, slots=True)
class KlineRows:
    """The rows of one answer, oldest first, as JSON joined by commas."""

    joined: bytes
    count: int

    @property
    def body(self) -> bytes:
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
        forming = self.forming(now_ms) if last > closed else self.candles[:0]
        parts += [row.encode() for row in json_rows(forming, self.padding)]
        return KlineRows(b",".join(parts), min(last, closed) - first + len(forming))

    def forming(self, now_ms: int) -> pl.DataFrame:
        """The candle that is open now in its present state, in one row; no rows if the data has none."""
        row = int(np.searchsorted(self.close_ms, now_ms))
        if row == len(self.open_ms) or self.open_ms[row] > now_ms:
            return self.candles[:0]
        start_ms, candle = int(self.open_ms[row]), self.candles[row : row + 1]
        if self._finer is None:
            return self._partial(candle, (now_ms - start_ms) / (int(self.close_ms[row]) + 1 - start_ms))
        parts = self._finer.since(start_ms, now_ms)
        return parts if parts.is_empty() else candle.with_columns(parts.select(self._finer.merged()))

    def since(self, start_ms: int, now_ms: int) -> pl.DataFrame:
        """Every visible candle that opens at or after `start_ms`, the forming one included."""
        first, closed = np.searchsorted(self.open_ms, start_ms), np.searchsorted(self.close_ms, now_ms)
        if first > closed:
            return self.candles[:0]
        return pl.concat([self.candles[int(first) : int(closed)], self.forming(now_ms)])

    def merged(self) -> list[pl.Expr]:
        """The numbers of a candle that spans some; sums are rounded to the decimals that their parts have."""
        sums = [pl.col(name).sum().round(self.precision[name]) for name in DECIMAL_COLUMNS[4:]]
        first, last = pl.col("open").first(), pl.col("close").last()
        return [first, pl.col("high").max(), pl.col("low").min(), last, pl.col("trades").sum(), *sums]

    def coarser(self, interval: Interval) -> "ReplaySeries":
        """The same market in a longer interval, exactly aggregated (sums keep the decimals of their parts).

        A last bucket that the data does not reach the end of is left out.
        """
        opens = pl.col("open_time").dt.truncate(interval.slug)
        buckets = self.candles.group_by(opens, maintain_order=True).agg(self.merged())
        closes = next_open(pl.col("open_time"), interval) - pl.duration(milliseconds=1)
        buckets = buckets.with_columns(closes.alias("close_time")).select(*CANDLE_SCHEMA)
        whole = buckets.filter(pl.col("close_time") <= self.candles["close_time"][-1])
        return ReplaySeries(whole, interval, self.market, finer=self)

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

    def _partial(self, candle: pl.DataFrame, done: float) -> pl.DataFrame:
        """The candle after a share of its time: the price visits the extremes and ends at the close.

        A rising candle goes open, low, high, close in three straight legs of equal time, a falling one open,
        high, low, close; volume grows evenly. So every state is possible and later ones only extend it.
        """
        begin, high, low, end = candle.select(DECIMAL_COLUMNS[:4]).row(0)
        turns = (low, high) if end >= begin else (high, low)
        knots = (begin, *turns, end)
        price = float(np.interp(done * 3, range(4), knots))
        close = min(max(round(price, self.precision["close"]), low), high)
        seen = (*knots[: int(done * 3) + 1], close)
        whole, places = candle.row(0, named=True), self.precision
        amounts = {name: round(whole[name] * done, places[name]) for name in DECIMAL_COLUMNS[4:]}
        trades = pl.lit(int(whole["trades"] * done), pl.Int64)
        return candle.with_columns(high=max(seen), low=min(seen), close=close, trades=trades, **amounts)


def _filled(candles: pl.DataFrame) -> pl.DataFrame:
    # The order of the operations is the dataset's, so that both estimates are the same float.
    estimate = pl.col("volume") * (pl.col("open") + pl.col("high") + pl.col("low") + pl.col("close")) / 4
    return candles.with_columns(
        pl.col("quote_volume").fill_null(estimate),
        pl.col("trades", "taker_buy_volume", "taker_buy_quote_volume").fill_null(0),
    )
