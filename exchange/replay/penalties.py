"""Request weights and what an exchange does to a client that spends too many: 429, then 418."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from exchange.replay.clock import ReplayClock
from storage.schema import Market

__all__ = ["WEIGHT_LIMITS", "Refusal", "WeightLimiter", "request_weight"]

WEIGHT_LIMITS: Mapping[Market, int] = {"spot": 6000, "um": 2400}
"""Weight per minute and IP address, as exchangeInfo states it."""

PATIENCE = 10
"""Requests answered with 429 within one minute before the address is banned. Binance publishes no number."""

FIRST_BAN_S = 120
LONGEST_BAN_S = 3 * 24 * 3600


def request_weight(market: Market, endpoint: str, params: Mapping[str, str]) -> int:
    """Weight of one request by Binance's tables; a limit that is no number weighs as the default one."""
    if endpoint == "klines":
        return 2 if market == "spot" else _um_klines_weight(params.get("limit", ""))
    if endpoint == "exchangeInfo":
        return 20 if market == "spot" else 1
    if endpoint == "ticker/24hr":
        return _ticker_weight(market, params)
    return 1


def _um_klines_weight(limit: str) -> int:
    count = int(limit) if limit.isdecimal() else 500
    return next((weight for below, weight in ((100, 1), (500, 2), (1001, 5)) if count < below), 10)


def _ticker_weight(market: Market, params: Mapping[str, str]) -> int:
    if market == "um":
        return 1 if "symbol" in params else 40
    if "symbol" in params:
        return 2
    if "symbols" not in params:
        return 80
    symbols = params["symbols"].count(",") + 1
    return 2 if symbols <= 20 else 40 if symbols <= 100 else 80


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is refused for its weight."""

    status: int
    retry_after_s: int
    banned_until_ms: int | None
    limit: int


class WeightLimiter:
    """Counts the weight of one market's requests in UTC minutes of `clock.limits_ms`."""

    def __init__(self, limit: int, *, clock: ReplayClock) -> None:
        self.limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._minute = -1
        self._used = 0
        self._refused = 0
        self._banned_until_ms = 0
        self._bans = 0

    def spend(self, weight: int) -> tuple[int, Refusal | None]:
        """Count one request; returns the weight used in this minute and the refusal, if it is refused."""
        with self._lock:
            now_ms = self._clock.limits_ms
            minute = now_ms // 60_000
            if minute != self._minute:
                self._minute, self._used, self._refused = minute, 0, 0
            self._used += weight
            if now_ms < self._banned_until_ms:
                return self._used, self._ban(now_ms)
            if self._used <= self.limit:
                return self._used, None
            self._refused += 1
            if self._refused > PATIENCE:
                seconds = min(FIRST_BAN_S * 2**self._bans, LONGEST_BAN_S)
                self._bans += 1
                self._banned_until_ms = now_ms + seconds * 1000
                return self._used, self._ban(now_ms)
            return self._used, Refusal(429, (60_000 - now_ms % 60_000) // 1000 + 1, None, self.limit)

    def _ban(self, now_ms: int) -> Refusal:
        left_ms = self._banned_until_ms - now_ms
        return Refusal(418, -(-left_ms // 1000), self._clock.now_ms + left_ms, self.limit)
