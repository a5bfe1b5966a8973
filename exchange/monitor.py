"""Keep series of the lake up to date to the second: streams where there are any, REST where there is a gap.

One thread per connection reads; this one stores. It fetches over REST what closed before the start, what may
have closed during a reconnect or a jump, and what is overdue; where no stream is to be had, all of it every
`every_s` seconds. So the lake misses no candle and holds none twice, whatever the network does.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from exchange.candle_csv import CandleCsv
from exchange.candle_queue import CandleQueue
from exchange.errors import ExchangeError, NoCandles
from exchange.monitor_state import Candle, Connection, MonitorState, SeriesState, Ticker
from exchange.rest import RestClient
from exchange.stream import (
    STREAMS_PER_CONNECTION,
    Connected,
    Disconnected,
    Jumped,
    KlineStream,
    KlineUpdate,
    StreamConfig,
    StreamEvent,
)
from exchange.sync import sync_series
from kronos_model.settings import Seconds, settings
from storage.atomic import write_json
from storage.errors import LockedError
from storage.lake import Lake
from storage.ledger import Ledger, Source
from storage.schema import Market, SeriesKey

__all__ = ["Monitor", "MonitorConfig", "Stopped", "interruptible"]

TELL_S = 0.2  # between two calls of on_update
SAVE_S = 1.0  # between two writes of the JSON file
JOIN_S = 2.0  # for a connection to end

logger = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818  # not an error
    """The monitor is to stop; raised out of a wait."""


@settings
class MonitorConfig:
    """How far back a monitor looks, and how often."""

    backfill_s: Seconds = 86_400.0
    """Seconds before now whose closed candles are fetched at the start, and checked at each reconnect."""
    every_s: Seconds = 60.0
    """Seconds between two polls of a series that no stream brings, and between two 24 h tickers."""
    grace_s: Seconds = 5.0
    """Seconds that a closing message may be late before its candle is fetched over REST."""


def interruptible(stop: threading.Event) -> Callable[[float], None]:
    """A sleep for a client's waits that raises Stopped as soon as `stop` is set."""

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    return sleep


@dataclass(slots=True)
class _Watched:
    """One series at work. `check_at` is when to ask REST, by time.monotonic()."""

    key: SeriesKey
    url: str
    connection: Connection = "connecting"
    last: Candle | None = None
    forming: Candle | None = None
    ticker: Ticker | None = None
    ticker_at: float = float("-inf")
    check_at: float = 0.0
    incomplete: bool = True
    """Candles may be missing before the latest."""
    next_ms: int = 0
    """Open time after the latest closed candle that has come."""
    safe_ms: int | None = None
    """Open time of the candle up to which, from the start on, none is missing."""
    doubted_ms: int = 0
    """The latest open time whose predecessors were found missing: one look at REST for each."""
    added: int = 0
    pending: list[pl.DataFrame] = field(default_factory=list)
    """Closed candles that are not in the lake yet."""
    store_at: float = 0.0
    """Not to be stored before, by time.monotonic()."""


class Monitor:
    """Watches series until `stop` is set. `clients` has one for each market, whose sleep is interruptible."""

    def __init__(
        self,
        keys: Sequence[SeriesKey],
        *,
        lake: Lake,
        ledger: Ledger,
        clients: Mapping[Market, RestClient],
        stop: threading.Event,
        config: MonitorConfig | None = None,
        stream: StreamConfig | None = None,
        csv: Path | None = None,
        json: Path | None = None,
        on_update: Callable[[MonitorState], object] = lambda state: None,
    ) -> None:
        self.config = config or MonitorConfig()
        self.stream = stream or StreamConfig()
        self._lake, self._ledger, self._clients, self._stop = lake, ledger, clients, stop
        self._watched = {key: _Watched(key, self.stream.base_url(key.market)) for key in keys}
        self._tape = CandleCsv(csv, keys) if csv else None
        self._json = json
        self._on_update = on_update
        self._inbox = CandleQueue()
        self._exchange_ms = 0
        self._connects = 0
        self._last_error = ""
        self._told_at = self._saved_at = float("-inf")

    def run(self, *, duration_s: float | None = None) -> MonitorState:
        """Until `stop` is set or the time is over. What cannot be fetched at the very start is an error."""
        end = float("inf") if duration_s is None else time.monotonic() + duration_s
        threads: list[threading.Thread] = []
        try:
            for one in self._watched.values():
                self._backfill(one)
            threads = self._start_streams()
            while not self._stop.is_set() and time.monotonic() < end:
                for event in self._inbox.take(timeout=TELL_S):
                    self._apply(event)
                self._round()
                self._tell()
        except Stopped:
            logger.debug("stopped in a wait")
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(JOIN_S)
            for one in self._watched.values():
                self._store(one, final=True)
                one.connection = "stopped"
            self._tell(final=True)
        return self.state()

    def state(self) -> MonitorState:
        series = tuple(
            SeriesState(
                key=one.key,
                connection=one.connection,
                last=one.last,
                forming=one.forming,
                ticker=one.ticker,
                next_close_ms=_next_close_ms(one),
                added=one.added,
            )
            for one in self._watched.values()
        )
        return MonitorState(
            series=series,
            exchange_ms=self._exchange_ms,
            connects=self._connects,
            last_error=self._last_error,
        )

    def _start_streams(self) -> list[threading.Thread]:
        threads = []
        for market in self._clients:
            keys = [key for key in self._watched if key.market == market]
            for first in range(0, len(keys), STREAMS_PER_CONNECTION):
                part = keys[first : first + STREAMS_PER_CONNECTION]
                events = KlineStream(market, part, self.stream, stop=self._stop).events
                name = f"stream-{market}-{first}"
                threads.append(
                    threading.Thread(target=self._inbox.fill, args=[events], name=name, daemon=True)
                )
        for thread in threads:
            thread.start()
        return threads

    def _apply(self, event: StreamEvent) -> None:
        match event:
            case KlineUpdate():
                self._update(self._watched[event.key], event)
            case Jumped(key):
                self._doubt(self._watched[key])
            case Connected(keys):
                self._connects += 1
                for key in keys:
                    self._doubt(self._watched[key])
            case Disconnected(keys, reason, fruitless):
                self._last_error = f"stream of {keys[0].market}: {reason}"
                polling = fruitless >= self.stream.patience
                for key in keys:
                    one = self._watched[key]
                    one.connection = "polling" if polling else "connecting"
                    one.forming = None
                    if polling:
                        one.check_at = min(one.check_at, time.monotonic() + self.config.every_s)

    def _update(self, one: _Watched, update: KlineUpdate) -> None:
        one.connection = "streaming"
        self._exchange_ms = max(self._exchange_ms, update.event_ms)
        if update.open_ms > max(one.next_ms, one.doubted_ms):  # the one before closed unseen
            one.doubted_ms = update.open_ms
            self._doubt(one)
        next_close_ms = update.close_ms
        if update.candle is not None:
            one.pending.append(update.candle)
            one.next_ms = max(one.next_ms, update.close_ms + 1)
            if one.last is None or update.open_ms >= one.last.open_ms:
                one.last, one.forming = update, None
            if not one.incomplete:
                one.safe_ms = one.last.open_ms
            next_close_ms = one.key.interval.close(one.next_ms)
        elif one.last is None or update.open_ms > one.last.open_ms:
            one.forming = update
        if not one.incomplete:
            left_s = max(0.0, (next_close_ms + 1 - update.event_ms) / 1000)
            one.check_at = time.monotonic() + left_s + self.config.grace_s

    def _doubt(self, one: _Watched) -> None:
        """Candles may be missing: ask REST at once."""
        one.incomplete, one.check_at = True, time.monotonic()

    def _round(self) -> None:
        """Store what has come, fetch what is missing, refresh one ticker."""
        for one in self._watched.values():
            self._store(one)
            if time.monotonic() >= one.check_at and not self._stop.is_set():
                self._heal(one)
        self._refresh_ticker()

    def _refresh_ticker(self) -> None:
        """The oldest one, if it is due: one at a time, since candles wait meanwhile."""
        now = time.monotonic()
        one = min(self._watched.values(), key=lambda one: one.ticker_at)
        if self._stop.is_set() or now - one.ticker_at < self.config.every_s:
            return
        one.ticker_at = now
        try:
            one.ticker = Ticker.of_answer(self._clients[one.key.market].ticker_24h(one.key.symbol))
        except ExchangeError as error:
            self._note(error)
            for other in self._watched.values():  # no use in asking for them now
                other.ticker_at = time.monotonic()

    def _heal(self, one: _Watched) -> None:
        try:
            self._backfill(one)
        except (ExchangeError, LockedError) as error:
            self._note(error)
            one.check_at = time.monotonic() + self.config.every_s

    def _backfill(self, one: _Watched) -> None:
        """Every closed candle since `backfill_s` ago, or since the last one stored."""
        key = one.key
        client = self._clients[key.market]
        server_ms = client.server_time_ms()
        self._exchange_ms = max(self._exchange_ms, server_ms)
        start_ms = key.interval.floor(server_ms - round(self.config.backfill_s * 1000))
        if one.safe_ms is not None:  # it may have slept for longer than that
            start_ms = min(start_ms, one.safe_ms)
        try:
            report = sync_series(client, self._lake, self._ledger, key, start_ms=start_ms)
        except NoCandles as error:
            logger.info("%s", error)  # just listed, or no candle of this length is closed yet
        else:
            one.added += report.added
            if one.last is None or report.last_ms >= one.last.open_ms:
                one.last = Candle.last_of(self._lake.read(key, report.last_ms))
            one.safe_ms = one.last.open_ms
            one.next_ms = max(one.next_ms, one.last.close_ms + 1)
        one.incomplete = False
        opened_ms = key.interval.floor(server_ms)
        left_s = (key.interval.next(opened_ms) - server_ms) / 1000 + self.config.grace_s
        wait_s = self.config.every_s if one.connection == "polling" else max(left_s, self.config.every_s)
        one.check_at = time.monotonic() + wait_s
        self._record(one, start_ms)

    def _store(self, one: _Watched, *, final: bool = False) -> None:
        """Closed candles of the stream into the lake; while another process writes the series they wait.

        Storing takes a tenth of the time at most: a month of 1s candles is written in seconds, not at once.
        """
        began = time.monotonic()
        if not one.pending or (began < one.store_at and not final):
            return
        candles = pl.concat(one.pending).unique("open_time", keep="last").sort("open_time")
        try:
            upsert = self._lake.upsert(one.key, candles, source=Source("stream", one.url))
        except LockedError as error:
            self._note(error)
            return
        one.store_at = time.monotonic() + 9 * (time.monotonic() - began)
        one.pending.clear()
        one.added += upsert.added
        self._record(one, int(candles["open_time"].dt.epoch("ms")[0]))

    def _record(self, one: _Watched, start_ms: int) -> None:
        """New candles of the lake into the CSV, in order: not while older ones may be missing."""
        if self._tape is None or one.incomplete or one.last is None:
            return
        last_ms = self._tape.last_ms(one.key)
        self._tape.append(one.key, self._lake.read(one.key, start_ms if last_ms is None else last_ms + 1))

    def _note(self, error: Exception) -> None:
        if str(error) != self._last_error:
            logger.warning("%s", error)
        self._last_error = str(error)

    def _tell(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if final or now - self._told_at >= TELL_S:
            self._told_at = now
            self._on_update(self.state())
        if self._json is not None and (final or now - self._saved_at >= SAVE_S):
            self._saved_at = now
            write_json(self._json, self.state().as_json())


def _next_close_ms(one: _Watched) -> int | None:
    if one.forming is not None:
        return one.forming.close_ms
    return one.key.interval.close(one.last.close_ms + 1) if one.last is not None else None
