"""Binance's REST market data: closed, validated candles page by page, with patience and within the budget."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import polars as pl
import requests
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from exchange.budget import LIMITS_PER_MINUTE, WeightBudget
from exchange.errors import (
    BadInterval,
    BadSymbol,
    Banned,
    ExchangeError,
    Malformed,
    NoCandles,
    RateLimited,
    Unreachable,
    error_of,
)
from exchange.klines import PAGE_LIMITS, klines_weight, parse_page
from exchange.transport import cause_of, first_line, log_retry
from storage.errors import CandleError
from storage.interval import INTERVALS
from storage.schema import Market, SeriesKey

__all__ = ["ExchangeConfig", "RestClient"]

PREFIXES = {"spot": "/api/v3", "um": "/fapi/v1"}
LONGEST_PAUSE_S = 600.0  # a longer Retry-After is an error for the caller, not a sleep
MISFITS = (ValueError, LookupError, TypeError, AttributeError, pl.exceptions.PolarsError, CandleError)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeConfig:
    """Where Binance is, and how patient to be with it."""

    spot_url: str = "https://api.binance.com"
    """Base URL of the spot REST API. https://data-api.binance.vision is Binance's mirror for market data."""
    um_url: str = "https://fapi.binance.com"
    """Base URL of the USD-M futures REST API."""
    timeout_s: float = 20.0
    """Longest wait for a connection and for each piece of an answer, in seconds."""
    attempts: int = 6
    """How often one request is tried in all, before its error is raised."""

    def __post_init__(self) -> None:
        for name, url in (("spot_url", self.spot_url), ("um_url", self.um_url)):
            if not url.startswith(("http://", "https://")) or url.rstrip("/").endswith(":"):
                raise ValueError(
                    f"Expected exchange.{name} to be a URL such as https://api.binance.com, found {url!r}; "
                    "write the scheme and the host."
                )
        if not self.timeout_s > 0:
            raise ValueError(
                f"Expected exchange.timeout_s above 0 seconds, found {self.timeout_s}; 20 is a good value."
            )
        if self.attempts < 1:
            raise ValueError(
                f"Expected exchange.attempts of at least 1, found {self.attempts}; 6 is a good value."
            )


class RestClient:
    """One market of the exchange. Use one client per thread; share the budget between them."""

    def __init__(
        self,
        market: Market,
        config: ExchangeConfig | None = None,
        *,
        budget: WeightBudget | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.market: Market = market
        self.config = config or ExchangeConfig()
        self.url = (self.config.spot_url if market == "spot" else self.config.um_url).rstrip("/")
        self.budget = budget or WeightBudget(LIMITS_PER_MINUTE[market], sleep=sleep)
        self.requests = 0
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "kronos-nightly"
        self._retrying = Retrying(
            sleep=sleep,
            stop=stop_after_attempt(self.config.attempts),
            wait=wait_exponential_jitter(initial=0.5, max=30.0),
            retry=retry_if_exception(_worth_another_try),
            before_sleep=log_retry,
            reraise=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._session.close()

    def server_time_ms(self) -> int:
        """The exchange's clock: the only one that says whether a candle is closed."""
        return self._get("/time", {}, weight=1, parse=lambda answer: int(answer["serverTime"]))

    def symbol_info(self, symbol: str) -> dict[str, Any]:
        """The exchange's own description of one symbol (status, precision, filters)."""
        entries = self._exchange_info({"symbol": symbol} if self.market == "spot" else {}, symbol=symbol)
        if symbol not in entries:
            raise _misspelt(symbol, self.market, list(entries))
        return entries[symbol]

    def ticker_24h(self, symbol: str) -> dict[str, Any]:
        """Rolling statistics of the last 24 hours."""
        return self._get("/ticker/24hr", {"symbol": symbol}, weight=2, parse=dict)

    def first_open_ms(self, key: SeriesKey) -> int:
        """Open time of the first candle there is: the listing."""
        self._check_market(key)
        rows = self._klines(key, {"startTime": 0, "limit": 1}, lambda answer: [int(row[0]) for row in answer])
        if not rows:
            raise NoCandles(
                f"Expected a first candle of {key}, found that Binance lists the symbol but has none yet; "
                "wait until it trades."
            )
        return rows[0]

    def pages(
        self,
        key: SeriesKey,
        start_ms: int,
        end_ms: int | None = None,
        forward: bool = True,
        *,
        server_ms: int | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Closed candles with start_ms <= open_time < end_ms, a page at a time; a page is never empty.

        Forward from the start or backward from the end; the rows of a page always ascend. `server_ms` is the
        exchange's clock, if the caller has asked for it already. Holes stay holes, within a page too.
        """
        self._check_market(key)
        interval = key.interval
        closed_ms = self.server_time_ms() if server_ms is None else server_ms
        if (opened_ms := interval.floor(start_ms)) < start_ms:
            start_ms = interval.next(opened_ms)
        # close_time < closed_ms is the rule: true of every candle before the one that is open at closed_ms.
        end_ms = min(interval.floor(closed_ms), closed_ms if end_ms is None else end_ms)
        while start_ms < end_ms:
            limit = min(PAGE_LIMITS[self.market], interval.count(start_ms, end_ms - 1))
            asked = {"endTime": end_ms - 1, "limit": limit} | ({"startTime": start_ms} if forward else {})
            page = self._klines(key, asked, partial(parse_page, key, asked))
            candles = page.candles.filter(pl.col("open_time").dt.epoch("ms") >= start_ms)
            if not candles.is_empty():
                yield candles
            if not page.rows:  # a page may be short for other reasons than the end of the data
                return
            if forward:
                start_ms = interval.next(interval.floor(page.last_ms))
            else:
                end_ms = page.first_ms

    def _klines(self, key: SeriesKey, params: Mapping[str, int], parse: Callable[[Any], T]) -> T:
        asked = {"symbol": key.symbol, "interval": key.interval.name, **params}
        try:
            return self._get(
                "/klines", asked, weight=klines_weight(self.market, params["limit"]), parse=parse
            )
        except BadSymbol as error:
            raise self._with_neighbours(key.symbol, error) from None
        except BadInterval:
            known = [name for name in INTERVALS if self.market == "spot" or name != "1s"]
            raise BadInterval(
                f"Expected a candle interval of Binance {self.market}, found {key.interval.name!r}; "
                f"choose one of {', '.join(known)}."
            ) from None

    def _with_neighbours(self, symbol: str, error: BadSymbol) -> BadSymbol:
        try:
            return _misspelt(symbol, self.market, list(self._exchange_info({}, symbol=symbol)))
        except ExchangeError:
            return error  # the suggestion is a courtesy

    def _exchange_info(self, params: Mapping[str, str], *, symbol: str) -> dict[str, dict[str, Any]]:
        """Symbols by name; the answer also tells the weight limit of this address."""

        def parse(answer: Any) -> dict[str, dict[str, Any]]:
            for limit in answer.get("rateLimits", []):
                kind = (limit["rateLimitType"], limit["interval"], limit["intervalNum"])
                if kind == ("REQUEST_WEIGHT", "MINUTE", 1):
                    self.budget.limit_per_minute = int(limit["limit"])
            return {entry["symbol"]: entry for entry in answer["symbols"]}

        try:
            return self._get("/exchangeInfo", params, weight=20 if self.market == "spot" else 1, parse=parse)
        except BadSymbol as error:
            if not params:
                raise
            raise self._with_neighbours(symbol, error) from None

    def _get(self, path: str, params: Mapping[str, Any], *, weight: int, parse: Callable[[Any], T]) -> T:
        answer: T = self._retrying(self._ask, path, params, weight, parse)
        return answer

    def _ask(self, path: str, params: Mapping[str, Any], weight: int, parse: Callable[[Any], T]) -> T:
        self.budget.before(weight)
        self.requests += 1
        url = self.url + PREFIXES[self.market] + path
        try:
            response = self._session.get(url, params=dict(params), timeout=self.config.timeout_s)
        except requests.RequestException as error:
            raise Unreachable(
                f"Expected an answer from {self.url}, found {cause_of(error)}; check the network and "
                f"exchange.{self.market}_url."
            ) from error
        self.budget.after(response.headers)
        if response.status_code != 200:
            raise self._refusal(response, params)
        try:
            return parse(response.json())
        except MISFITS as error:
            raise Malformed(
                f"Expected a well-formed answer from {url} to {dict(params)}, found {first_line(error)}; "
                "try again later, and report it if it stays."
            ) from error

    def _refusal(self, response: requests.Response, params: Mapping[str, Any]) -> ExchangeError:
        error = error_of(
            response.status_code,
            response.content,
            response.headers,
            url=self.url,
            market=self.market,
            params=params,
        )
        if isinstance(error, RateLimited):
            self.budget.pause(error.retry_after_s)
        elif isinstance(error, Banned):
            self.budget.forbid(error)
        return error

    def _check_market(self, key: SeriesKey) -> None:
        if key.market != self.market:
            raise ValueError(
                f"Expected a series of market {self.market}, found {key}; "
                f"make a RestClient({key.market!r}) for it."
            )


def _misspelt(symbol: str, market: Market, known: Sequence[str]) -> BadSymbol:
    nearest = get_close_matches(symbol, known, n=3, cutoff=0.6)
    hint = f" (near it: {', '.join(nearest)})" if nearest else ""
    return BadSymbol(
        f"Expected a symbol that Binance {market} lists, found {symbol!r}; check the spelling{hint}."
    )


def _worth_another_try(error: BaseException) -> bool:
    if isinstance(error, RateLimited):
        return error.retry_after_s <= LONGEST_PAUSE_S
    return isinstance(error, Malformed | Unreachable)
