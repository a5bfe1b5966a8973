"""The HTTP server under the replay: loopback only, keep-alive, and answers that can go wrong on purpose."""

import logging
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from exchange.errors import ExchangeError
from exchange.replay.answers import Answer
from exchange.replay.websocket import is_stream

__all__ = ["LoopbackServer"]

HOST = "127.0.0.1"
POLL_S = 0.05  # how soon it notices that it shall stop
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST

logger = logging.getLogger(__name__)


class LoopbackServer(socketserver.ThreadingTCPServer):
    """Answers each request with `respond(target)`, one thread per connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        respond: Callable[[str], Answer],
        *,
        port: int = 0,
        stream: Callable[[socket.socket], object] | None = None,
    ) -> None:
        self.respond = respond
        self.stream = stream
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._begun = False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ExchangeError(
                f"Expected port {port} of {HOST} to be free, found {error.strerror}; "
                "choose another port, or 0 for any."
            ) from error

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def start(self) -> threading.Thread:
        self._begun = True  # not in the thread: a stop right after this has to wait for it
        thread = threading.Thread(target=self.serve_forever, name="replay-exchange", daemon=True)
        thread.start()
        return thread

    def serve_forever(self, poll_interval: float = POLL_S) -> None:
        self._begun = True
        super().serve_forever(poll_interval)

    def stop(self) -> None:
        """Stop serving, end every connection and free the port; may be called twice."""
        self.stopping.set()
        if self._begun:
            self.shutdown()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Remember the connection and serve it in its own thread."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve one connection: a stream or HTTP requests, whichever it begins with."""
        if self.stream is not None and is_stream(request):
            self.stream(request)
        else:
            super().finish_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """End a connection in order, unless it is to be reset: then an orderly FIN would come first."""
        with self._lock:
            self._connections.discard(request)
        if request.fileno() != -1 and request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == RESET:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no event; anything else is our bug and is logged as one."""
        gone = isinstance(sys.exc_info()[1], OSError)
        logger.log(
            logging.DEBUG if gone else logging.ERROR, "answer to %s failed", client_address, exc_info=True
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def do_GET(self) -> None:
        self._send(self.server.respond(self.path))

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)

    def _send(self, answer: Answer) -> None:
        cut = len(answer.body) // 2
        if answer.delay_s and answer.delivery != "drip":
            self.server.stopping.wait(answer.delay_s)
        body = answer.body if answer.delivery == "whole" else answer.body[:cut]
        self.wfile.write(self._head(answer) + body)
        if answer.delivery == "drip":
            self.server.stopping.wait(answer.delay_s)
            self.wfile.write(answer.body[cut:])
        elif answer.delivery != "whole":
            self.close_connection = True
        if answer.delivery == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _head(self, answer: Answer) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            f"Date: {formatdate(usegmt=True)}",
            "Server: replay",
            *(f"{name}: {value}" for name, value in answer.headers),
            *(["Connection: close"] if self.close_connection else []),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()
