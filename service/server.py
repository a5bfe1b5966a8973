"""The service on an address, until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service.api import application
from service.config import MIN_TOKEN, ServiceConfig
from service.errors import Refused
from service.follow import Follower
from storage.layout import Home

__all__ = ["TOKEN_VARIABLE", "check_exposure", "serve"]

TOKEN_VARIABLE = "KRONOS_SERVE_TOKEN"

logger = logging.getLogger(__name__)


def check_exposure(host: str, token: str | None) -> None:
    """Refuse to be reachable from other machines without a token, and a token that can be guessed."""
    if token is not None and (
        len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token
    ):
        raise Refused(
            503,
            f"Expected at least {MIN_TOKEN} characters without spaces in {TOKEN_VARIABLE}, found another text; "
            "make one with `openssl rand -hex 32`.",
        )
    if token is None and not _loopback(host):
        raise Refused(
            503,
            f"Expected a token, since {host} can be reached from other machines, found none; set {TOKEN_VARIABLE}, or "
            "serve on 127.0.0.1.",
        )


def serve(
    home: Home, config: ServiceConfig, *, host: str, port: int, token: str | None, follower: Follower | None
) -> None:
    """Answer on host and port until SIGINT or SIGTERM; requests under way are answered first."""
    check_exposure(host, token)
    listening = _listen(host, port)
    app = application(home, config, token=token, follower=follower)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # the guard writes one
            limit_concurrency=config.connections,
            timeout_graceful_shutdown=int(config.timeout_s),
            server_header=False,
            proxy_headers=False,
        )
    )
    with listening:
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Says where it answers once it does, and ends in order at a signal, which is no failure."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            host, port = one.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            logger.info("Dashboard and API: http://%s:%d (Ctrl-C stops it)", where, port)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise Refused(
            503,
            f"Expected to listen on {host}:{port}, found that it cannot be ({error.strerror or error}); "
            "choose another --host or --port.",
        ) from error
    return listening


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
