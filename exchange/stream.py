"""Candles as they happen: Binance's WebSocket klines, kept alive.

A connection that drops, that is 24 hours old, or that acknowledges and then says nothing (Binance's retired
addresses do so) is replaced. Candles may close unseen meanwhile, and a closing message may be lost: the
events say when, and who reads them fetches the candles over REST.
"""

import json
import logging
import math
import random
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

import polars as pl
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from exchange.errors import Malformed
from exchange.klines import parse_page
from exchange.monitor_state import Candle
from exchange.transport import reason_of
from kronos_model.settings import Count, Seconds, Written, settings
from storage.errors import CandleError
from storage.schema import Market, SeriesKey

__all__ = [
    "Connected",
    "Disconnected",
    "Jumped",
    "KlineStream",
    "KlineUpdate",
    "StreamConfig",
    "StreamEvent",
    "parse_kline",
]

STREAMS_PER_CONNECTION = 200  # of the 1024 allowed: more would not fit into one request line everywhere
WAKE_S = 0.25  # how soon a stop is noticed
DECIMALS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "quote_volume": "q"}
USD_M = 1  # the field `st` of futures events; 2 is COIN-M

logger = logging.getLogger(__name__)


StreamUrl = Annotated[
    str, Written(pattern=r"wss?://\S+", words="a URL such as wss://data-stream.binance.vision")
]


@settings
class StreamConfig:
    """Where Binance streams, and when a connection counts as dead."""

    spot_stream_url: StreamUrl = "wss://data-stream.binance.vision"
    """Base URL of the spot streams; wss://stream.binance.com:9443 has the same."""
    um_stream_url: StreamUrl = "wss://fstream.binance.com/market"
    """Base URL of the USD-M futures streams. Without /market it connects and stays silent."""
    connect_timeout_s: Seconds = 10.0
    """Longest wait for a connection, in seconds."""
    silence_s: Seconds = 60.0
    """Seconds without any candle after which a connection is replaced, however healthy it looks."""
    lifetime_s: Seconds = 84_600.0
    """Seconds after which a connection is replaced; Binance cuts it after 24 hours (86,400 s)."""
    backoff_s: Seconds = 1.0
    """Wait before the second attempt to connect, in seconds; doubles with each further one, less jitter."""
    longest_backoff_s: Seconds = 60.0
    """Longest wait between attempts to connect, in seconds."""
    patience: Count = 3
    """Connections in a row that bring no candle, after which candles are polled over REST meanwhile."""

    def base_url(self, market: Market) -> str:
        return (self.spot_stream_url if market == "spot" else self.um_stream_url).rstrip("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class KlineUpdate(Candle):
    """A candle as the exchange sees it at `event_ms`: forming, or closed and final."""

    key: SeriesKey
    event_ms: int
    candle: pl.DataFrame | None = field(default=None, compare=False)
    """The canonical frame of one row, once the candle is closed."""

    @property
    def closed(self) -> bool:
        return self.candle is not None


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection stands. What closed before it has to be fetched."""

    keys: tuple[SeriesKey, ...]


@dataclass(frozen=True, slots=True)
class Jumped:
    """A closing message was lost: a later candle has come. What is between has to be fetched."""

    key: SeriesKey


@dataclass(frozen=True, slots=True)
class Disconnected:
    """No connection for now. `fruitless` of them in a row have brought no candle."""

    keys: tuple[SeriesKey, ...]
    reason: str
    fruitless: int


StreamEvent = Connected | Jumped | Disconnected | KlineUpdate


class KlineStream:
    """Klines of some series of one market over one connection at a time."""

    def __init__(
        self,
        market: Market,
        keys: Sequence[SeriesKey],
        config: StreamConfig | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        if not keys or len(keys) > STREAMS_PER_CONNECTION or any(key.market != market for key in keys):
            raise ValueError(
                f"Expected 1 to {STREAMS_PER_CONNECTION} series of market {market}, found {len(keys)}: "
                f"{', '.join(map(str, keys[:5]))}; make a stream for each market and so many."
            )
        self.keys = tuple(keys)
        self.config = config or StreamConfig()
        names = "/".join(f"{key.symbol.lower()}@kline_{key.interval}" for key in keys)
        self.url = f"{self.config.base_url(market)}/stream?streams={quote(names, safe='@/_')}"
        self._market = market
        self._named = {(key.symbol, key.interval.name): key for key in keys}
        self._stop = stop or threading.Event()
        self._seen: dict[SeriesKey, KlineUpdate] = {}
        self._fruitless = 0

    def events(self) -> Iterator[StreamEvent]:
        """Whatever happens, until `stop` is set; it never raises for the network's sake."""
        while not self._stop.is_set():
            reason = "its planned end"
            self._fruitless += 1  # until a candle comes
            try:
                # Binance is said to refuse permessage-deflate. Pings are answered, and sent, by the library.
                patience_s = self.config.connect_timeout_s
                with connect(
                    self.url, compression=None, open_timeout=patience_s, close_timeout=1.0
                ) as websocket:
                    self._seen.clear()
                    yield Connected(self.keys)
                    reason = yield from self._listen(websocket)
            except InvalidURI as error:
                raise ValueError(f"Expected a URL of a stream, found {self.url!r}; correct it.") from error
            except (OSError, WebSocketException, EOFError, ImportError) as error:
                reason = _cause(error)  # ImportError: a SOCKS proxy without the package for it
            if self._stop.is_set():
                return
            logger.info("stream of %s: %s; connecting again", self._market, reason)
            yield Disconnected(self.keys, reason, self._fruitless)
            self._stop.wait(self._backoff_s())

    def _listen(self, websocket: Connection) -> Generator[StreamEvent, None, str]:
        """What the connection brings; in the end, why it ended."""
        begun = heard = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now - begun >= self.config.lifetime_s:
                return "replaced before its 24 hours are over"
            if now - heard >= self.config.silence_s:
                return f"connected, but silent for {self.config.silence_s:g} s"
            until = min(begun + self.config.lifetime_s, heard + self.config.silence_s)
            try:
                message = websocket.recv(timeout=min(until - now, WAKE_S))
            except TimeoutError:
                continue
            data = _data(message)
            if data.get("e") == "serverShutdown":
                return "the exchange restarts this server"
            key = self._key(data)
            if key is not None:
                heard, self._fruitless = time.monotonic(), 0
                yield from self._read(key, data)
        return "stopped"

    def _key(self, data: dict[str, Any]) -> SeriesKey | None:
        """Whose candle it is; none if it is another event, another market's, or not asked for."""
        candle = data.get("k")
        if data.get("e") != "kline" or data.get("st", USD_M) != USD_M or not isinstance(candle, dict):
            return None
        return self._named.get((candle.get("s", ""), candle.get("i", "")))

    def _read(self, key: SeriesKey, data: dict[str, Any]) -> Iterator[StreamEvent]:
        try:
            update = parse_kline(key, data)
        except Malformed as error:
            logger.warning("%s", error)
            yield Jumped(key)  # the candle has to come over REST
        else:
            yield from self._follow(update)

    def _follow(self, update: KlineUpdate) -> Iterator[StreamEvent]:
        """One update in its order: repeated and outdated ones are dropped, a jump is told."""
        before = self._seen.get(update.key, update)
        if update.open_ms < before.open_ms:
            if update.closed:  # a thin pair's closing message may come after the next candle's first one
                yield update
            return
        if before is not update and update.open_ms == before.open_ms and before.closed:
            return
        if update.open_ms > before.open_ms:
            expected_ms = update.key.interval.next(before.open_ms)
            if update.open_ms > expected_ms or not before.closed:
                yield Jumped(update.key)
        self._seen[update.key] = update
        yield update

    def _backoff_s(self) -> float:
        # By hand: tenacity repeats calls, and this is a generator that must tell of each loss before it waits.
        if self._fruitless == 0:
            return 0.0
        doubled_s = math.ldexp(self.config.backoff_s, min(self._fruitless - 1, 30))
        return min(doubled_s, self.config.longest_backoff_s) * random.uniform(0.5, 1.0)


def parse_kline(key: SeriesKey, event: dict[str, Any]) -> KlineUpdate:
    """The candle in a kline event; Malformed if it is none."""
    try:
        k = event["k"]
        row = [*(k[name] for name in "tohlcvTqnVQ"), "0"]
        candle = parse_page(key, {"startTime": k["t"], "endTime": k["t"]}, [row]).candles if k["x"] else None
        return KlineUpdate(
            key=key,
            event_ms=int(event["E"]),
            open_ms=int(k["t"]),
            close_ms=int(k["T"]),
            trades=int(k["n"]),
            candle=candle,
            **{name: float(k[field]) for name, field in DECIMALS.items()},
        )
    except (ValueError, LookupError, TypeError, pl.exceptions.PolarsError, CandleError) as error:
        raise Malformed(
            f"Expected a candle of {key} on the stream, found {event!r:.300} ({error}); "
            "report it if it comes again."
        ) from error


def _data(message: str | bytes) -> dict[str, Any]:
    """The event in a message, wrapped or not; empty for an answer to a request."""
    try:
        event = json.loads(message)
    except ValueError:
        return {}
    data = event.get("data", event) if isinstance(event, dict) else {}
    return data if isinstance(data, dict) else {}


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionClosed):
        return "the exchange ended the connection"
    return reason_of(error) or str(error).partition("\n")[0] or type(error).__name__
