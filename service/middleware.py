"""What every request passes: the token, the limits on its body, the access log, the metrics, safe headers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.config import ServiceConfig
from service.errors import Refused
from service.prometheus_metrics import Metrics

__all__ = ["Guard"]

logger = logging.getLogger("service.access")

_OPEN_PATHS = ("/", "/health", "/favicon.ico")  # the page has no data of its own; it asks for the token
_OPEN_FOLDER = "/assets/"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
}


class Guard:
    """Wraps an application. A refusal is an answer with a status and a sentence, never a dropped connection."""

    def __init__(self, app: ASGIApp, *, config: ServiceConfig, watch: Metrics, token: str | None) -> None:
        self._app, self._config, self._watch = app, config, watch
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, size = time.perf_counter(), 500, 0

        async def told(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_headers(scope))
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), told)
        except Refused as refusal:
            answer = JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)
            await answer(scope, receive, told)
        finally:
            seconds = time.perf_counter() - began
            self._watch.answered(_route(scope), scope["method"], status, seconds)
            logger.info("%s", _line(scope, status, size, seconds))

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in _OPEN_PATHS or scope["path"].startswith(_OPEN_FOLDER):
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not fits:
            raise Refused(
                401, "Expected a valid token, found none; send the header Authorization: Bearer TOKEN."
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole request body, within its limits of size and time."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._config.max_body_bytes:
            raise self._oversized()
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "Expected the whole request body, found its end; send it again.")
                    body += message.get("body", b"")
                    if len(body) > self._config.max_body_bytes:
                        raise self._oversized()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(
                408,
                f"Expected the request body within {self._config.body_timeout_s:g} s, found a part; send it again.",
            ) from None

    def _oversized(self) -> Refused:
        return Refused(
            413,
            f"Expected a body of at most {self._config.max_body_bytes:,} bytes, found more; send a smaller one.",
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that hands out the body that was read, then what follows."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _headers(scope: Scope) -> dict[str, str]:
    cached = scope["path"].startswith(_OPEN_FOLDER) or scope["path"] == "/"
    return {**_HEADERS, "cache-control": "no-cache" if cached else "no-store"}


def _route(scope: Scope) -> str:
    """The route's template, so that metrics do not grow with what is asked."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else ("/assets" if scope["path"].startswith(_OPEN_FOLDER) else "other")


def _line(scope: Scope, status: int, size: int, seconds: float) -> str:
    host = (scope.get("client") or ("-",))[0]
    query = scope.get("query_string", b"")
    target = scope.get("raw_path", b"") + (b"?" + query if query else b"")
    asked = f"{scope['method']} {target.decode('ascii', 'backslashreplace')}"
    return f"{host} {ascii(asked)[1:-1]} {status} {size} B {1000 * seconds:.1f} ms"
