"""WebSocket klines as Binance streams them: forming candles again and again, then each one closed.

`/ws/<stream>` sends bare events and `/stream?streams=a/b` wrapped ones, both below `/market` for USD-M
futures; SUBSCRIBE, UNSUBSCRIBE and LIST_SUBSCRIPTIONS are answered on either. A stream that does not exist
is acknowledged and stays silent, as at Binance. Messages follow the replay's clock: while it stands still
nothing is sent.
"""

import json
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection

from exchange.replay.answers import Answer
from exchange.replay.clock import ReplayClock
from exchange.replay.faults import Fault, FaultKind, FaultPlan
from exchange.replay.series import ReplaySeries
from exchange.replay.wire import dumps
from storage.interval import INTERVALS, Interval
from storage.schema import Market

__all__ = ["StreamFaults", "StreamServer", "is_stream"]

PREFIXES = (b"GET /ws", b"GET /stream", b"GET /market/")
PUSH_MS = {"spot": 2000, "um": 250}  # of one stream; spot's 1s has 1000
SHORTEST_PAUSE_S = 0.01  # however fast the clock runs
LONGEST_PAUSE_S = 0.1  # the clock may be stepped by hand
METHODS = "`SUBSCRIBE`, `UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`"
PING_S: dict[Market, tuple[float, float]] = {"spot": (20.0, 60.0), "um": (180.0, 600.0)}  # every, patience

logger = logging.getLogger(__name__)


def is_stream(connection: socket.socket) -> bool:
    """Whether the first request on a connection is for a stream; nothing of it is consumed."""
    return connection.recv(16, socket.MSG_PEEK).startswith(PREFIXES)


class StreamFaults:
    """The plans of what goes wrong on streams, each with its own count."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.handshakes = _plan(faults, "ws-refuse", "ws-silent")
        self.messages = _plan(faults, "ws-disconnect", "ws-duplicate", "ws-shutdown")
        self.closings = _plan(faults, "ws-unclosed")


def _plan(faults: Sequence[Fault], *kinds: FaultKind) -> FaultPlan:
    return FaultPlan([fault for fault in faults if fault.kind in kinds])


@dataclass(slots=True)
class _Subscription:
    """One stream of a connection: from which candle on, and when the next message is due."""

    name: str
    symbol: str
    series: ReplaySeries
    push_ms: int
    next_open_ms: int
    push_at_ms: int = 0
    close_at_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamServer:
    """Streams of one replay; `serve` handles one connection until it ends."""

    find: Callable[[Market, str, Interval], ReplaySeries | None]
    clock: ReplayClock
    faults: Callable[[], StreamFaults]
    note: Callable[..., Answer]

    def serve(self, connection: socket.socket) -> None:
        """Shake hands, then send what is due and answer what is asked."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        market = _market(connection)
        every, patience = PING_S[market]
        websocket = ServerConnection(
            connection, ServerProtocol(), ping_interval=every, ping_timeout=patience, close_timeout=1.0
        )
        session = _Session(self, websocket, market)
        try:
            websocket.handshake(session.greet, timeout=5.0)
            if session.accepted:
                websocket.start_keepalive()
                session.run()
        except (ConnectionClosed, OSError, TimeoutError):
            logger.debug("a stream ended")
        finally:
            websocket.close_socket()


class _Session:
    """One connection."""

    def __init__(self, server: StreamServer, websocket: ServerConnection, market: Market) -> None:
        self.accepted = False
        self._server = server
        self._websocket = websocket
        self._market = market
        self._silent = False
        self._combined = False
        self._subscribed: dict[str, _Subscription | None] = {}

    def greet(self, websocket: ServerConnection, request: Request) -> Response | None:
        """Read the streams off the address, or refuse."""
        parts = urlsplit(request.path)
        fault = self._server.faults().handshakes.strike(parts.path)
        path = unquote(parts.path).removeprefix("/market")
        known = path == "/stream" or path == "/ws" or path.startswith("/ws/")
        refused = fault is not None and fault.kind == "ws-refuse"
        status = 101 if known and not refused else 503 if refused else 404
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._server.note(parts.path, query, Answer(status, b""), fault=fault)
        if status != 101:
            return websocket.respond(status, "")
        self.accepted = True
        self._silent = fault is not None
        self._combined = path == "/stream"
        names = query.get("streams", "") if self._combined else path.removeprefix("/ws").removeprefix("/")
        self._subscribe([name for name in names.split("/") if name])
        return None

    def run(self) -> None:
        while True:
            self._push()
            try:
                self._answer(self._websocket.recv(timeout=self._pause_s()))
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        speed = self._server.clock.speed
        dues = [min(one.push_at_ms, one.close_at_ms) for one in self._subscribed.values() if one]
        if not dues or not speed:
            return SHORTEST_PAUSE_S if dues else LONGEST_PAUSE_S
        seconds = (min(dues) - self._server.clock.now_ms) / speed / 1000
        return min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)

    def _answer(self, message: str | bytes) -> None:
        try:
            asked = json.loads(message)
            method, params = asked["method"], asked.get("params", [])
        except (ValueError, KeyError, TypeError, AttributeError):
            self._send({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"})
            return
        result: list[str] | None = None
        if method == "LIST_SUBSCRIPTIONS":
            result = list(self._subscribed)
        elif method == "SUBSCRIBE":
            self._subscribe(params)
        elif method == "UNSUBSCRIBE":
            for name in params:
                self._subscribed.pop(name, None)
        else:
            text = f"Invalid request: unknown variant `{method}`, expected one of {METHODS}"
            self._send({"code": 2, "msg": text})
            return
        self._send({"result": result, "id": asked.get("id")})

    def _subscribe(self, names: Sequence[str]) -> None:
        for name in names:
            self._subscribed.setdefault(name, self._subscription(name))

    def _subscription(self, name: str) -> _Subscription | None:
        symbol, at, kind = name.partition("@kline_")
        listed = symbol == symbol.lower() and kind in INTERVALS and (kind != "1s" or self._market == "spot")
        if self._silent or not at or not listed:
            return None
        series = self._server.find(self._market, symbol.upper(), Interval(kind))
        if series is None:
            return None
        push_ms = 1000 if kind == "1s" else PUSH_MS[self._market]
        next_open_ms = series.interval.floor(self._server.clock.now_ms)
        return _Subscription(name, symbol.upper(), series, push_ms, next_open_ms)

    def _push(self) -> None:
        for one in list(self._subscribed.values()):
            now_ms = self._server.clock.now_ms
            if one is None or now_ms < min(one.push_at_ms, one.close_at_ms):
                continue
            one.push_at_ms, one.close_at_ms = now_ms + one.push_ms, now_ms + 100_000_000
            page = one.series.page(one.next_open_ms, None, limit=1000, now_ms=now_ms)
            for row in json.loads(page.body):
                closed = row[6] < now_ms
                if closed:
                    one.next_open_ms = row[0] + 1
                else:
                    one.close_at_ms = row[6] + 1
                self._emit(one, row, closed=closed, now_ms=now_ms)

    def _emit(self, one: _Subscription, row: list[Any], *, closed: bool, now_ms: int) -> None:
        faults = self._server.faults()
        if closed and faults.closings.strike(one.name) is not None:
            return
        event = self._event(one, row, closed=closed, now_ms=now_ms)
        fault = faults.messages.strike(one.name)
        kind = fault.kind if fault else None
        if kind == "ws-disconnect":
            self._websocket.socket.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if kind == "ws-shutdown":
            self._send({"e": "serverShutdown", "E": now_ms})
        message = {"stream": one.name, "data": event} if self._combined else event
        for _ in range(2 if kind == "ws-duplicate" else 1):
            self._send(message)

    def _event(self, one: _Subscription, row: list[Any], *, closed: bool, now_ms: int) -> dict[str, Any]:
        candle = dict(zip("tohlcvTqnVQB", row, strict=True)) | {
            "s": one.symbol,
            "i": one.series.interval.name,
            "f": 0,
            "L": max(0, row[8] - 1),
            "x": closed,
        }
        event = {"e": "kline", "E": now_ms, "s": one.symbol, "k": candle}
        return event | {"st": 1} if self._market == "um" else event  # 1: USD-M, 2: COIN-M

    def _send(self, message: object) -> None:
        self._websocket.send(dumps(message), text=True)


def _market(connection: socket.socket) -> Market:
    return "um" if connection.recv(16, socket.MSG_PEEK).startswith(b"GET /market/") else "spot"
