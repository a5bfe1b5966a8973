"""The JSON bodies of Binance's public endpoints, besides candles: exchange information, tickers, errors.

Fields that a replay knows come from the data (assets, precision, listing time); the others carry values that
Binance publishes for a liquid USDT pair.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from exchange.archive_parts import DAY_MS, period_ms
from exchange.replay.encoding import decimal_text
from exchange.replay.listed_symbols import ReplayMarket
from exchange.replay.series import ReplaySeries

__all__ = ["dumps", "exchange_info", "ticker"]

QUOTE_ASSETS = (
    "USDT",
    "USDC",
    "FDUSD",
    "BUSD",
    "TUSD",
    "DAI",
    "BTC",
    "ETH",
    "BNB",
    "EUR",
    "TRY",
    "BRL",
    "JPY",
)
PERPETUAL_DELIVERY_MS = 4_133_404_800_000
HOUR_MS = 3_600_000
PERMISSIONS = ["SPOT", "MARGIN", "TRD_GRP_004", "TRD_GRP_005", "TRD_GRP_006"]
SPOT_ORDER_TYPES = ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT"]
UM_ORDER_TYPES = ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"]
STP_MODES = ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"]
ALLOWED = (
    *("icebergAllowed", "ocoAllowed", "otoAllowed", "quoteOrderQtyMarketAllowed", "allowTrailingStop"),
    *("cancelReplaceAllowed", "amendAllowed", "isSpotTradingAllowed", "isMarginTradingAllowed"),
)
OTHER_LIMITS = {
    "spot": [
        ("ORDERS", "SECOND", 10, 100),
        ("ORDERS", "DAY", 1, 200_000),
        ("RAW_REQUESTS", "MINUTE", 5, 300_000),
    ],
    "um": [("ORDERS", "MINUTE", 1, 1200), ("ORDERS", "SECOND", 10, 300)],
}


def dumps(value: object) -> bytes:
    """JSON as Binance writes it: no spaces, UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def exchange_info(market: ReplayMarket, symbols: Iterable[str], *, now_ms: int) -> bytes:
    describe, um = (_spot_symbol, False) if market.name == "spot" else (_um_symbol, True)
    described = [describe(symbol, market.finest(symbol), now_ms) for symbol in symbols]
    head = {"timezone": "UTC", "serverTime": now_ms} | ({"futuresType": "U_MARGINED"} if um else {})
    tail: dict[str, Any] = {"rateLimits": _rate_limits(market), "exchangeFilters": []}
    if um:
        asset = {"marginAvailable": True, "autoAssetExchange": "-10000"}
        quotes = dict.fromkeys(symbol["marginAsset"] for symbol in described)
        tail["assets"] = [{"asset": name} | asset for name in quotes]
    return dumps(head | tail | {"symbols": described})


def ticker(market: ReplayMarket, symbol: str, *, now_ms: int, mini: bool) -> dict[str, Any]:
    """Statistics of the rolling 24 hours, from the candles that opened in them."""
    spot, series = market.name == "spot", market.finest(symbol)
    candles = series.since(now_ms - DAY_MS + 1, now_ms)
    day = candles.select(series.merged()).fill_null(0).row(0, named=True)
    places = 8 if spot else series.precision["close"]
    prices = {name: decimal_text(day[name], places) for name in ("open", "high", "low", "close")}
    common = {
        "openPrice": prices["open"],
        "highPrice": prices["high"],
        "lowPrice": prices["low"],
        "lastPrice": prices["close"],
        "volume": decimal_text(day["volume"], series.precision["volume"]),
        "quoteVolume": decimal_text(day["quote_volume"]),
        "openTime": now_ms - DAY_MS,
        "closeTime": now_ms,
        "firstId": 0,
        "lastId": max(0, day["trades"] - 1),
        "count": day["trades"],
    }
    if mini:
        return {"symbol": symbol} | common
    change = day["close"] - day["open"]
    average = day["quote_volume"] / day["volume"] if day["volume"] else 0.0
    none = "0.00000000" if spot else "0"
    changes = {
        "priceChange": f"{change:.{places}f}",
        "priceChangePercent": f"{100 * change / day['open'] if day['open'] else 0.0:.3f}",
        "weightedAvgPrice": f"{average:.{places}f}",
        "lastQty": none,
    }
    book = {"bidPrice": prices["close"], "bidQty": none, "askPrice": prices["close"], "askQty": none}
    spot_only = {"prevClosePrice": prices["open"]} | book if spot else {}
    return {"symbol": symbol} | changes | spot_only | common


def _rate_limits(market: ReplayMarket) -> list[dict[str, Any]]:
    limits = [("REQUEST_WEIGHT", "MINUTE", 1, market.weight_limit), *OTHER_LIMITS[market.name]]
    names = ("rateLimitType", "interval", "intervalNum", "limit")
    return [dict(zip(names, limit, strict=True)) for limit in limits]


def _spot_symbol(symbol: str, series: ReplaySeries, now_ms: int) -> dict[str, Any]:
    base, quote = _assets(symbol)
    tick, step = _step(series.precision["close"], 8), _step(series.precision["volume"], 8)
    return {
        "symbol": symbol,
        "status": "TRADING" if series.open_ms[0] <= now_ms else "PRE_TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": SPOT_ORDER_TYPES,
        **dict.fromkeys(ALLOWED, True),
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": tick,
                "maxPrice": "1000000.00000000",
                "tickSize": tick,
            },
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "9000000.00000000", "stepSize": step},
            {
                "filterType": "NOTIONAL",
                "minNotional": "5.00000000",
                "applyMinToMarket": True,
                "maxNotional": "9000000.00000000",
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
        ],
        "permissions": [],
        "permissionSets": [PERMISSIONS],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": STP_MODES,
    }


def _um_symbol(symbol: str, series: ReplaySeries, now_ms: int) -> dict[str, Any]:
    pair, _, delivery = symbol.partition("_")
    base, quote = _assets(pair)
    price, quantity = series.precision["close"], series.precision["volume"]
    tick, step = _step(price, price), _step(quantity, quantity)
    delivery_ms = PERPETUAL_DELIVERY_MS
    if re.fullmatch(r"\d{6}", delivery):
        delivery_ms = period_ms("daily", f"20{delivery[:2]}-{delivery[2:4]}-{delivery[4:]}")[0] + 8 * HOUR_MS
    return {
        "symbol": symbol,
        "pair": pair,
        "contractType": "CURRENT_QUARTER" if delivery else "PERPETUAL",
        "deliveryDate": delivery_ms,
        "onboardDate": int(series.open_ms[0]),
        "status": "TRADING" if series.open_ms[0] <= now_ms else "PENDING_TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": quote,
        "pricePrecision": price,
        "quantityPrecision": quantity,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10_000,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "10000000", "stepSize": step},
            {"filterType": "MARKET_LOT_SIZE", "minQty": step, "maxQty": "1000000", "stepSize": step},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
        ],
        "orderTypes": UM_ORDER_TYPES,
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
    }


def _assets(pair: str) -> tuple[str, str]:
    quote = next((asset for asset in QUOTE_ASSETS if pair.endswith(asset) and pair != asset), "")
    return (pair.removesuffix(quote), quote) if quote else (pair, "USDT")


def _step(precision: int, decimals: int) -> str:
    return f"{10**-precision:.{decimals}f}"
