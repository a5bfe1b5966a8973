"""What can go wrong on the wire, each as one sentence: expected, found, what to do."""

# ruff: noqa: N818  # the names say what happened; every one is an ExchangeError

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any

from storage.interval import INTERVALS

__all__ = [
    "ArchiveError",
    "BadInterval",
    "BadRequest",
    "BadSymbol",
    "Banned",
    "ExchangeError",
    "GeoBlocked",
    "Malformed",
    "NoCandles",
    "NotYetPublished",
    "RateLimited",
    "Unreachable",
    "error_of",
    "misspelt",
]

SPOT_MIRROR = "https://data-api.binance.vision"  # market data only, spot only, no key
DEFAULT_RETRY_AFTER_S = 60.0  # weights are counted per minute
FIREWALL_RETRY_AFTER_S = 30.0  # a WAF refusal carries no Retry-After


class ExchangeError(Exception):
    """Base of everything this package raises about the exchange."""


class BadSymbol(ExchangeError):
    """The exchange lists no such symbol in this market."""


class BadInterval(ExchangeError):
    """The exchange has no such candle interval in this market."""


class BadRequest(ExchangeError):
    """The exchange refuses the request itself; asking again changes nothing."""


class NoCandles(ExchangeError):
    """The exchange answers, and has no closed candle in the asked range."""


class RateLimited(ExchangeError):
    """Too much request weight was used; every worker behind this address has to wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Banned(ExchangeError):
    """The exchange has banned this address for a while; asking on makes the ban longer."""

    def __init__(self, message: str, *, until_ms: int, seconds: float) -> None:
        super().__init__(message)
        self.until_ms = until_ms
        self.seconds = seconds


class GeoBlocked(ExchangeError):
    """The exchange does not serve this location."""


class Malformed(ExchangeError):
    """The answer is not what the exchange's documentation promises."""


class ArchiveError(ExchangeError):
    """A part of the bulk archive cannot be used: damaged, unproven, or not what its name says."""


class NotYetPublished(ArchiveError):
    """The bulk archive has no such part, or not yet."""


class Unreachable(ExchangeError):
    """No usable answer came: no connection, a time-out, a dropped one, or a failing server."""


def error_of(
    status: int, body: bytes, headers: Mapping[str, str], *, url: str, market: str, params: Mapping[str, Any]
) -> ExchangeError:
    """The typed error for an answer whose HTTP status is not 200."""
    code, text = _code_and_text(body)
    if status == 418:
        return _banned(url, text, headers)
    if status in (403, 429):
        return _rate_limited(status, url, headers)
    if status == 451:
        return _geo_blocked(url, market)
    if status == 408 or status >= 500:
        detail = f" ({text})" if text else ""
        return Unreachable(
            f"Expected an answer from {url}, found HTTP {status}{detail}; "
            "the exchange has trouble, try again later."
        )
    if code == -1121:
        return misspelt(str(params.get("symbol")), market)
    if code == -1120:
        known = [name for name in INTERVALS if market == "spot" or name != "1s"]
        return BadInterval(
            f"Expected a candle interval of Binance {market}, found {params.get('interval')!r}; "
            f"choose one of {', '.join(known)}."
        )
    found = f"error {code} ({text})" if code is not None else f"HTTP {status}"
    return BadRequest(
        f"Expected {url} to accept {dict(params)}, found {found}; "
        "check the request, and that the URL is one of Binance's API."
    )


def misspelt(symbol: str, market: str, known: Sequence[str] = ()) -> BadSymbol:
    """The error for a symbol that is none of the known ones, with those nearest to it."""
    nearest = get_close_matches(symbol, known, n=3, cutoff=0.6)
    hint = f" (near it: {', '.join(nearest)})" if nearest else ""
    return BadSymbol(
        f"Expected a symbol that Binance {market} lists, found {symbol!r}; check the spelling{hint}."
    )


def _code_and_text(body: bytes) -> tuple[int | None, str]:
    try:
        answer = json.loads(body)
    except ValueError:
        return None, ""  # a firewall answers HTML
    if not isinstance(answer, dict) or not isinstance(answer.get("code"), int):
        return None, ""
    return answer["code"], " ".join(str(answer.get("msg", "")).split())[:200].rstrip(".")


def _retry_after_s(headers: Mapping[str, str], default: float) -> float:
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isdigit() else default


def _rate_limited(status: int, url: str, headers: Mapping[str, str]) -> RateLimited:
    seconds = _retry_after_s(headers, DEFAULT_RETRY_AFTER_S if status == 429 else FIREWALL_RETRY_AFTER_S)
    who = "too much request weight" if status == 429 else "its firewall refuses this address"
    return RateLimited(
        f"Expected {url} to answer, found HTTP {status} ({who}); wait {seconds:.0f} s, "
        "and let fewer programs ask from this address.",
        retry_after_s=seconds,
    )


def _banned(url: str, text: str, headers: Mapping[str, str]) -> Banned:
    seconds = _retry_after_s(headers, 120.0)  # the shortest ban there is
    sent_ms = _date_ms(headers)
    named = re.search(r"until (\d{13})", text)
    until_ms = int(named[1]) if named else sent_ms + round(seconds * 1000)
    if named and "Retry-After" not in headers:
        seconds = max(0.0, (until_ms - sent_ms) / 1000)
    until = datetime.fromtimestamp(until_ms / 1000, UTC)
    return Banned(
        f"Expected {url} to answer, found HTTP 418: this address is banned until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC; stop every program that asks Binance from it and "
        "run again after that time.",
        until_ms=until_ms,
        seconds=seconds,
    )


def _date_ms(headers: Mapping[str, str]) -> int:
    try:
        return round(parsedate_to_datetime(headers["Date"]).timestamp() * 1000)
    except (KeyError, ValueError):
        return round(time.time() * 1000)


def _geo_blocked(url: str, market: str) -> GeoBlocked:
    remedy = "run from a location that Binance serves, or import candles from files"
    if market == "spot" and not url.startswith(SPOT_MIRROR):
        remedy = f"set exchange.spot_url to {SPOT_MIRROR}, Binance's public mirror for spot data"
    return GeoBlocked(
        f"Expected {url} to answer, found HTTP 451: Binance does not serve this location; {remedy}."
    )
