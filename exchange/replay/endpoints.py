"""What Binance answers: parameters checked in its order and words, weights counted, candles served.

Where spot and USD-M futures differ they differ here too: spot caps a limit above 1000 in silence, futures
refuse one above 1500; spot refuses unknown parameters, futures ignore them (also `symbol` of exchangeInfo);
spot alone takes times in microseconds. Not offered: `timeZone` other than UTC, answers in microseconds, and
intervals that neither are stored nor follow from a finer stored one (an error -1130 that says so, which
Binance would not send).
"""

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from exchange.replay.answers import Answer
from exchange.replay.clock import ReplayClock
from exchange.replay.listed_symbols import ReplayMarket
from exchange.replay.series import KlineRows
from exchange.replay.wire import dumps, exchange_info, ticker
from storage.interval import INTERVALS, Interval
from storage.schema import Market

__all__ = ["RequestError", "answer_for", "parse_query", "route"]

PREFIXES: Mapping[Market, str] = {"spot": "/api/v3/", "um": "/fapi/v1/"}
SPOT_SYMBOL = r"^[\w\-._&&[^a-z]]{1,50}$"  # as Binance prints it, a Java pattern
SPOT_SYMBOLS = r'^\[("[\w\-._&&[^a-z]]{1,50}"(,"[\w\-._&&[^a-z]]{1,50}"){0,}){0,1}\]$'
NUMBER = "^[0-9]{1,20}$"
KNOWN: Mapping[str, frozenset[str]] = {
    "ping": frozenset(),
    "time": frozenset(),
    "exchangeInfo": frozenset({"symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"}),
    "klines": frozenset({"symbol", "interval", "startTime", "endTime", "timeZone", "limit"}),
    "ticker/24hr": frozenset({"symbol", "symbols", "type", "symbolStatus"}),
}
UTC_ZONES = ("0", "00:00", "+00:00", "-00:00", "+0", "-0")
MICROSECONDS = 10**14  # larger times are microseconds


class RequestError(Exception):
    """A request that Binance refuses with HTTP 400 and a code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def route(path: str) -> tuple[Market, str] | None:
    """Market and endpoint of a path, if there is such an endpoint."""
    for market, prefix in PREFIXES.items():
        if path.startswith(prefix) and path.removeprefix(prefix) in KNOWN:
            return market, path.removeprefix(prefix)
    return None


def parse_query(query: str) -> dict[str, str]:
    """Parameters by name; one that comes twice is Binance's error -1101."""
    pairs = parse_qsl(query, keep_blank_values=True)
    params = dict(pairs)
    if len(params) != len(pairs):
        raise RequestError(-1101, "Duplicate values for a parameter detected.")
    return params


def answer_for(market: ReplayMarket, endpoint: str, params: Mapping[str, str], clock: ReplayClock) -> Answer:
    """The answer to a request whose weight is paid."""
    if market.name == "spot":
        _refuse_unknown(endpoint, params)
    now_ms = clock.now_ms
    match endpoint:
        case "ping":
            return Answer(200, b"{}")
        case "time":
            return Answer(200, dumps({"serverTime": now_ms}))
        case "klines":
            page = _klines(market, params, now_ms)
            return Answer(200, page.body, page=page)
        case "exchangeInfo":
            asked = _symbols(market, params) if market.name == "spot" else None
            return Answer(200, exchange_info(market, asked or market.symbols, now_ms=now_ms))
        case _:
            return Answer(200, _tickers(market, params, now_ms))


def _klines(market: ReplayMarket, params: Mapping[str, str], now_ms: int) -> KlineRows:
    spot = market.name == "spot"
    symbol = _symbol(market, params)
    name = _required(params, "interval")
    if name not in INTERVALS or (name == "1s" and not spot):
        raise RequestError(-1120, "Invalid interval.")
    start_ms, end_ms = (_time(params, which, spot=spot) for which in ("startTime", "endTime"))
    limit = _limit(params, spot=spot)
    if params.get("timeZone", "0") not in UTC_ZONES:
        raise RequestError(
            -1130, "Data sent for parameter 'timeZone' is not valid: this replay has UTC only."
        )
    if not spot and start_ms is not None and end_ms is not None and start_ms > end_ms:
        raise RequestError(-1023, "Start time is greater than end time.")
    series = market.series(symbol, Interval(name))
    if series is None:
        stored = ", ".join(market.intervals(symbol))
        text = f"Data sent for parameter 'interval' is not valid: this replay has {stored} of {symbol}."
        raise RequestError(-1130, text)
    return series.page(start_ms, end_ms, limit=limit, now_ms=now_ms)


def _tickers(market: ReplayMarket, params: Mapping[str, str], now_ms: int) -> bytes:
    kind = params.get("type", "FULL")
    if kind not in ("FULL", "MINI"):
        raise RequestError(-1139, "Invalid ticker type.")
    asked = _symbols(market, params) if market.name == "spot" or "symbol" in params else None
    symbols = asked or market.symbols
    found = [ticker(market, symbol, now_ms=now_ms, mini=kind == "MINI") for symbol in symbols]
    return dumps(found[0] if "symbol" in params else found)


def _refuse_unknown(endpoint: str, params: Mapping[str, str]) -> None:
    known = KNOWN[endpoint]
    if not known and params:
        raise RequestError(-1101, f"Too many parameters; expected '0' and received '{len(params)}'.")
    read = sum(name in known for name in params)
    if read < len(params):
        text = f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{len(params)}'."
        raise RequestError(-1104, text)


def _required(params: Mapping[str, str], name: str) -> str:
    if name not in params:
        raise RequestError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    if not params[name]:
        raise RequestError(-1105, f"Parameter '{name}' was empty.")
    return params[name]


def _symbol(market: ReplayMarket, params: Mapping[str, str]) -> str:
    symbol = _required(params, "symbol")
    if market.name == "spot" and not re.fullmatch(r"(?:[^\Wa-z]|[-.]){1,50}", symbol):
        raise _illegal("symbol", SPOT_SYMBOL)
    if symbol not in market.symbols:
        raise RequestError(-1121, "Invalid symbol.")
    return symbol


def _symbols(market: ReplayMarket, params: Mapping[str, str]) -> list[str] | None:
    """What `symbol` or `symbols` (a JSON array) name; none if neither is there."""
    if "symbol" in params and "symbols" in params:
        raise RequestError(-1128, "Combination of optional parameters invalid.")
    if "symbol" in params:
        return [_symbol(market, params)]
    if "symbols" not in params:
        return None
    try:
        names = json.loads(params["symbols"])
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _illegal("symbols", SPOT_SYMBOLS)
    return [_symbol(market, {"symbol": name}) for name in names]


def _time(params: Mapping[str, str], name: str, *, spot: bool) -> int | None:
    if name not in params:
        return None
    value = _whole(params, name, spot=spot)
    return value // 1000 if spot and value >= MICROSECONDS else value


def _limit(params: Mapping[str, str], *, spot: bool) -> int:
    if "limit" not in params:
        return 500
    limit = _whole(params, "limit", spot=spot)
    if spot and limit == 0:
        raise RequestError(-1102, "Mandatory parameter 'limit' was not sent, was empty/null, or malformed.")
    if not spot and not 1 <= limit <= 1500:
        raise RequestError(-1130, "Data sent for parameter 'limit' is not valid.")
    return min(limit, 1000) if spot else limit


def _whole(params: Mapping[str, str], name: str, *, spot: bool) -> int:
    value = _required(params, name)
    if re.fullmatch("[0-9]{1,20}", value):
        return min(int(value), 2**63 - 1)
    if spot:
        raise _illegal(name, NUMBER)
    raise RequestError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def _illegal(name: str, legal: str) -> RequestError:
    return RequestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
