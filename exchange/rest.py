"""Binance's REST market data: closed, validated candles page by page, with patience and within the budget."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeVar

import polars as pl
import requests
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from exchange.budget import LIMITS_PER_MINUTE, LONGEST_PAUSE_S, WeightBudget
from exchange.config import ExchangeConfig
from exchange.errors import (
    BadSymbol,
    Banned,
    ExchangeError,
    GeoBlocked,
    Malformed,
    NoCandles,
    RateLimited,
    Unreachable,
    error_of,
    misspelt,
)
from exchange.klines import PAGE_LIMITS, KlinesPage, klines_weight, parse_first, parse_page
from exchange.stretches import Stretch
from exchange.transport import PooledClient, cause_of, first_line, log_retry
from exchange.weights import WeightClaim
from storage.errors import CandleError
from storage.schema import Market, SeriesKey

__all__ = ["ExchangeConfig", "RestClient"]

ALL_TICKERS_WEIGHTS = {"spot": 80, "um": 40}
INFO_WEIGHTS = {"spot": 20, "um": 1}
PREFIXES = {"spot": "/api/v3", "um": "/fapi/v1"}
MISFITS = (ValueError, LookupError, TypeError, AttributeError, pl.exceptions.PolarsError, CandleError)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RestClient(PooledClient):
    """One market of the exchange. Use one client per thread; share the budget between them.

    `url` is where it asks: the configured host, or for spot the fallback once that host refuses the location.
    """

    def __init__(
        self,
        market: Market,
        config: ExchangeConfig | None = None,
        *,
        budget: WeightBudget | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config = config or ExchangeConfig()
        super().__init__(market, self.config.workers, f"{market}-pages")
        self.budget = budget or WeightBudget(LIMITS_PER_MINUTE[market], sleep=sleep)
        self.requests = 0
        self._counting = threading.Lock()
        self._limit_known = False
        self._retrying = Retrying(
            sleep=sleep,
            stop=stop_after_attempt(self.config.attempts),
            wait=wait_exponential_jitter(initial=0.5, max=30.0),
            retry=retry_if_exception(_worth_another_try),
            before_sleep=log_retry,
            reraise=True,
        )

    @property
    def url(self) -> str:
        """Where requests go now."""
        if self.market == "spot" and self.budget.geo_blocked and self.config.spot_fallback_url:
            return self.config.spot_fallback_url.rstrip("/")
        return self.config.url_of(self.market)

    def server_time_ms(self) -> int:
        """The exchange's clock: the only one that says whether a candle is closed."""
        return self._get("/time", {}, weight=1, parse=lambda answer: int(answer["serverTime"]))

    def symbol_info(self, symbol: str) -> dict[str, Any]:
        """The exchange's own description of one symbol (status, precision, filters)."""
        entries = self._exchange_info({"symbol": symbol} if self.market == "spot" else {}, symbol=symbol)
        if symbol not in entries:
            raise misspelt(symbol, self.market, list(entries))
        return entries[symbol]

    def ticker_24h(self, symbol: str) -> dict[str, Any]:
        """Rolling statistics of the last 24 hours."""
        return self._get("/ticker/24hr", {"symbol": symbol}, weight=2, parse=dict)

    def top_symbols(self, count: int, quote: str) -> list[str]:
        """The symbols of a quote asset that traded most in 24 hours, by quote volume, most traded first."""
        tickers = self._get("/ticker/24hr", {}, weight=ALL_TICKERS_WEIGHTS[self.market], parse=list)
        traded = [
            (float(one["quoteVolume"]), one["symbol"])
            for one in tickers
            if one["symbol"].endswith(quote) and one["symbol"] != quote
        ]
        if not traded:
            raise BadSymbol(
                f"Expected symbols of Binance {self.market} that are quoted in {quote!r}, found none; "
                "name a quote asset such as USDT."
            )
        return [symbol for _, symbol in sorted(traded, key=lambda one: (-one[0], one[1]))[:count]]

    def first_open_ms(self, key: SeriesKey) -> int:
        """Open time of the first candle there is: the listing."""
        self._check_market(key)
        rows = self._klines(key, {"startTime": 0, "limit": 1}, parse_first)
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
        if not forward:
            yield from self._backward(key, start_ms, end_ms)
            return
        while start_ms < end_ms:  # a page of whatever comes next, then those that follow by time
            page = self._page(key, self._asked(key, (start_ms, end_ms)))
            if not page.rows:
                return
            yield from page.filled()
            start_ms = _after(page, key)
            for stretch, page in self._ahead(key, start_ms, end_ms):
                if not page.rows:  # a hole longer than a page: the rest is planned anew behind it
                    start_ms = stretch[0]
                    break
                yield from page.filled()
                start_ms = stretch[1]
                yield from self._rest_of(key, (_after(page, key), start_ms))

    def _rest_of(self, key: SeriesKey, stretch: Stretch) -> Iterator[pl.DataFrame]:
        """What a page left out at its end, if anything: it may be short for other reasons than a hole."""
        while stretch[0] < stretch[1] and (page := self._page(key, self._asked(key, stretch))).rows:
            yield from page.filled()
            stretch = (_after(page, key), stretch[1])

    def _backward(self, key: SeriesKey, start_ms: int, end_ms: int) -> Iterator[pl.DataFrame]:
        while start_ms < end_ms:
            page = self._page(key, {"endTime": end_ms - 1, "limit": self._limit(key, (start_ms, end_ms))})
            yield from page.filled(start_ms)
            if not page.rows:
                return
            end_ms = page.first_ms

    def _ahead(self, key: SeriesKey, start_ms: int, end_ms: int) -> Iterator[tuple[Stretch, KlinesPage]]:
        """The pages of a range in order, several under way at once. Only the first try of each is made
        ahead of its turn, so that trouble meets one patient client and not many."""
        # A stretch for each full page; a month has no length, but all months fit in a page.
        step = (key.interval.milliseconds or end_ms) * PAGE_LIMITS[self.market]
        waiting = deque((at, min(at + step, end_ms)) for at in range(start_ms, end_ms, step))
        under_way: deque[tuple[Stretch, WeightClaim, Future[KlinesPage]]] = deque()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.config.workers:
                    weight = klines_weight(self.market, self._limit(key, waiting[0]))
                    claim = self.budget.at_once(weight) if under_way else self.budget.before(weight)
                    if claim is None:
                        break
                    stretch = waiting.popleft()
                    under_way.append((stretch, claim, self._pool.submit(self._try_page, key, stretch, claim)))
                stretch, _, future = under_way.popleft()
                tries = chain([future.result], repeat(partial(self._try_page, key, stretch)))
                page: KlinesPage = self._retrying(lambda tries=tries: next(tries)())
                yield stretch, page
        finally:
            for _, claim, future in under_way:
                if future.cancel():
                    self.budget.after(claim, {})

    def _limit(self, key: SeriesKey, stretch: Stretch) -> int:
        return min(PAGE_LIMITS[self.market], key.interval.count(stretch[0], stretch[1] - 1))

    def _page(self, key: SeriesKey, asked: Mapping[str, int]) -> KlinesPage:
        return self._klines(key, asked, partial(parse_page, key, asked))

    def _try_page(self, key: SeriesKey, stretch: Stretch, claim: WeightClaim | None = None) -> KlinesPage:
        asked = self._asked(key, stretch)
        params = {"symbol": key.symbol, "interval": key.interval.name, **asked}
        weight = klines_weight(self.market, asked["limit"])
        return self._ask("/klines", params, weight, partial(parse_page, key, asked), claim)

    def _asked(self, key: SeriesKey, stretch: Stretch) -> dict[str, int]:
        """For the first candles of a stretch, as many as a page holds."""
        return {"startTime": stretch[0], "endTime": stretch[1] - 1, "limit": self._limit(key, stretch)}

    def _klines(self, key: SeriesKey, params: Mapping[str, int], parse: Callable[[Any], T]) -> T:
        asked = {"symbol": key.symbol, "interval": key.interval.name, **params}
        self._learn_limit(key.symbol)
        try:
            weight = klines_weight(self.market, params["limit"])
            return self._get("/klines", asked, weight=weight, parse=parse)
        except BadSymbol as error:
            raise self._with_neighbours(key.symbol, error) from None

    def _with_neighbours(self, symbol: str, error: BadSymbol) -> BadSymbol:
        try:
            return misspelt(symbol, self.market, list(self._exchange_info({}, symbol=symbol)))
        except ExchangeError:
            return error  # the suggestion is a courtesy

    def _exchange_info(self, params: Mapping[str, str], *, symbol: str) -> dict[str, dict[str, Any]]:
        """Symbols by name; the answer also tells the weight limit of this address."""

        def parse(answer: Any) -> dict[str, dict[str, Any]]:
            self._read_limit(answer)
            return {entry["symbol"]: entry for entry in answer["symbols"]}

        try:
            return self._get("/exchangeInfo", params, weight=INFO_WEIGHTS[self.market], parse=parse)
        except BadSymbol as error:
            if not params:
                raise
            raise self._with_neighbours(symbol, error) from None

    def _learn_limit(self, symbol: str) -> None:
        """Ask for the weight limit of this address, once, if the budget wants it; without an answer the known
        one holds."""
        if self._limit_known:
            return
        self._limit_known = True
        if not self.budget.wants_limit():
            return
        try:
            params = {"symbol": symbol} if self.market == "spot" else {}  # all of spot is megabytes
            self._ask("/exchangeInfo", params, INFO_WEIGHTS[self.market], self._read_limit)
        except (Banned, GeoBlocked):
            raise
        except ExchangeError as error:
            logger.info("the weight limit stays at %d: %s", self.budget.limit_per_minute, error)

    def _read_limit(self, answer: Any) -> None:
        for limit in answer.get("rateLimits", []):
            kind = (limit["rateLimitType"], limit["interval"], limit["intervalNum"])
            if kind == ("REQUEST_WEIGHT", "MINUTE", 1):
                self.budget.learn_limit(int(limit["limit"]))

    def _get(self, path: str, params: Mapping[str, Any], *, weight: int, parse: Callable[[Any], T]) -> T:
        answer: T = self._retrying(self._ask, path, params, weight, parse)
        return answer

    def _ask(
        self,
        path: str,
        params: Mapping[str, Any],
        weight: int,
        parse: Callable[[Any], T],
        claim: WeightClaim | None = None,
    ) -> T:
        claim = claim or self.budget.before(weight)
        host = self.url
        url = host + PREFIXES[self.market] + path
        response = self._send(url, params, claim)
        if response.status_code == 451 and self._fall_back(host):
            return self._ask(path, params, weight, parse)
        if response.status_code != 200:
            raise self._refusal(response, params, host)
        try:
            return parse(response.json())
        except MISFITS as error:
            raise Malformed(
                f"Expected a well-formed answer from {url} to {dict(params)}, found {first_line(error)}; "
                "try again later, and report it if it stays."
            ) from error

    def _send(self, url: str, params: Mapping[str, Any], claim: WeightClaim) -> requests.Response:
        with self._counting:
            self.requests += 1
        headers: Mapping[str, str] = {}
        try:
            response = self._session.get(url, params=dict(params), timeout=self.config.timeout_s)
            headers = response.headers
        except requests.RequestException as error:
            raise Unreachable(
                f"Expected an answer from {url.partition(PREFIXES[self.market])[0]}, "
                f"found {cause_of(error)}; check the network and exchange.{self.market}_url."
            ) from error
        finally:
            self.budget.after(claim, headers)
        return response

    def _fall_back(self, host: str) -> bool:
        """Whether spot has another host to ask than the one that refuses this location."""
        fallback = self.config.spot_fallback_url.rstrip("/")
        if self.market != "spot" or not fallback or host == fallback:
            return False
        if not self.budget.geo_blocked:
            self.budget.geo_blocked = True
            logger.warning(
                "%s does not serve this location (HTTP 451): spot candles come from %s", host, fallback
            )
        return True

    def _refusal(self, response: requests.Response, params: Mapping[str, Any], host: str) -> ExchangeError:
        told = response.status_code, response.content, response.headers
        error = error_of(*told, url=host, market=self.market, params=params)
        if isinstance(error, RateLimited):
            self.budget.pause(error.retry_after_s)
        elif isinstance(error, Banned):
            self.budget.forbid(error)
        return error


def _after(page: KlinesPage, key: SeriesKey) -> int:
    """Open time of the candle after the last one of a page."""
    return key.interval.next(key.interval.floor(page.last_ms))


def _worth_another_try(error: BaseException) -> bool:
    if isinstance(error, RateLimited):
        return error.retry_after_s <= LONGEST_PAUSE_S
    return isinstance(error, Malformed | Unreachable)
