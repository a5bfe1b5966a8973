"""What a candle is: its columns, the key of its series, and the rules that it keeps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, get_args

import polars as pl

from storage.errors import CandleError
from storage.interval import Interval

__all__ = ["CANDLE_SCHEMA", "Market", "SeriesKey", "next_open", "off_grid", "utc_text", "validate_candles"]

Market = Literal["spot", "um"]
_MARKETS: tuple[str, ...] = get_args(Market)

_TIME = pl.Datetime("ms", "UTC")
CANDLE_SCHEMA: dict[str, pl.DataType] = {
    "open_time": _TIME,
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Float64(),
    "close_time": _TIME,
    "quote_volume": pl.Float64(),
    "trades": pl.Int64(),
    "taker_buy_volume": pl.Float64(),
    "taker_buy_quote_volume": pl.Float64(),
}
_PRICES = ("open", "high", "low", "close")
_REQUIRED = ("open_time", *_PRICES, "volume")
_OPTIONAL = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
_FLOATS = tuple(name for name, kind in CANDLE_SCHEMA.items() if kind == pl.Float64())
_NUMBERS = (*_FLOATS, "trades")


@dataclass(frozen=True, order=True, slots=True)
class SeriesKey:
    """One series of candles: `spot:BTCUSDT:1h`."""

    market: Market
    symbol: str
    interval: Interval

    def __post_init__(self) -> None:
        if self.market not in _MARKETS:
            raise CandleError(
                f"expected a market out of {', '.join(_MARKETS)}, found {self.market!r}; "
                "write a series as spot:BTCUSDT or um:BTCUSDT (USD-M futures)"
            )
        # Letters of every script: Binance lists symbols such as 币安人生USDT.
        if not re.fullmatch(r"\w{2,40}", self.symbol) or self.symbol != self.symbol.upper():
            raise CandleError(
                f"expected a symbol in capital letters and digits, found {self.symbol!r}; "
                "write it as Binance does, such as BTCUSDT"
            )

    @classmethod
    def parse(cls, name: str, interval: str | Interval) -> Self:
        """The key of `market:SYMBOL` at an interval, such as `SeriesKey.parse("um:DOGEUSDT", "1h")`."""
        market, colon, symbol = name.partition(":")
        if not colon:
            raise CandleError(
                f"expected market:SYMBOL, found {name!r}; write it as spot:BTCUSDT or um:BTCUSDT"
            )
        parsed = interval if isinstance(interval, Interval) else Interval(interval)
        return cls(market, symbol, parsed)  # type: ignore[arg-type]  # checked in __post_init__

    def __str__(self) -> str:
        return f"{self.name}:{self.interval}"

    @property
    def name(self) -> str:
        """`spot:BTCUSDT`."""
        return f"{self.market}:{self.symbol}"

    @property
    def slug(self) -> str:
        """`spot-BTCUSDT-1h`, for file names."""
        return f"{self.market}-{self.symbol}-{self.interval.slug}"


def utc_text(ms: int) -> str:
    """`2024-06-01 00:00:00 UTC`, with milliseconds only where there are some."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    fraction = f".{ms % 1000:03d}" if ms % 1000 else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} UTC"


def validate_candles(frame: pl.DataFrame, interval: Interval, *, origin: str) -> pl.DataFrame:
    """The candles in canonical columns, order and types, or a CandleError that names `origin`, row and rule.

    Absent optional columns become null, an absent close_time follows from the interval. Nothing is sorted,
    dropped or repaired.
    """
    _check_columns(frame, origin)
    candles = _cast(_complete(frame, interval), origin)
    _check_times(candles, interval, origin)
    _check_values(candles, origin)
    # -0.0 equals 0.0 but has other bytes.
    return candles.with_columns(
        pl.when(pl.col(_FLOATS) == 0).then(0.0).otherwise(pl.col(_FLOATS)).name.keep()
    )


def _check_columns(frame: pl.DataFrame, origin: str) -> None:
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if missing:
        found = ", ".join(frame.columns) or "none"
        raise CandleError(
            f"{origin}: expected the columns {', '.join(_REQUIRED)}, found {found}; add {', '.join(missing)}"
        )
    extra = [name for name in frame.columns if name not in CANDLE_SCHEMA]
    if extra:
        raise CandleError(
            f"{origin}: expected no columns but {', '.join(CANDLE_SCHEMA)}, found {', '.join(extra)}; "
            "rename or drop them"
        )
    for name in ("open_time", "close_time"):
        if name in frame.columns and not isinstance(frame.schema[name], pl.Datetime):
            raise CandleError(
                f"{origin}: expected {name} as Datetime in UTC, found {frame.schema[name]}; convert it first"
            )
    for name in _NUMBERS:
        if name in frame.columns and not (frame.schema[name].is_numeric() or frame.schema[name] == pl.Null):
            raise CandleError(
                f"{origin}: expected numbers in {name}, found {frame.schema[name]}; convert it first"
            )


def _complete(frame: pl.DataFrame, interval: Interval) -> pl.DataFrame:
    absent: list[pl.Expr] = [
        pl.lit(None, CANDLE_SCHEMA[name]).alias(name) for name in _OPTIONAL if name not in frame.columns
    ]
    if "close_time" not in frame.columns:
        absent.append(
            (next_open(pl.col("open_time"), interval) - pl.duration(milliseconds=1)).alias("close_time")
        )
    return frame.with_columns(absent).select(*CANDLE_SCHEMA)


def next_open(open_time: pl.Expr, interval: Interval) -> pl.Expr:
    """Open time of the following candle, as an expression."""
    step = interval.milliseconds
    return open_time.dt.offset_by("1mo") if step is None else open_time + pl.duration(milliseconds=step)


def _cast(frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    zoned = [
        pl.col(name).dt.replace_time_zone("UTC")  # a time without a zone is UTC
        if frame.schema[name].time_zone is None  # type: ignore[attr-defined]  # a Datetime, as checked
        else pl.col(name).dt.convert_time_zone("UTC")
        for name in ("open_time", "close_time")
    ]
    try:
        return frame.with_columns(zoned).cast(CANDLE_SCHEMA)  # type: ignore[arg-type]
    except pl.exceptions.InvalidOperationError as error:
        raise CandleError(f"{origin}: expected plain numbers, found values out of range; {error}") from error


def _refuse(candles: pl.DataFrame, bad: pl.Series, origin: str, rule: str, remedy: str) -> None:
    """Raise for the first row where `bad` holds (or is unknown), with its time, its values and the count."""
    bad = bad.fill_null(value=True)
    if not bad.any():
        return
    row = int(bad.arg_true()[0])
    more = int(bad.sum()) - 1
    others = f" (and {more} more such row{'s' * (more > 1)})" if more else ""
    moment = candles["open_time"].dt.epoch("ms")[row]
    when = "no open_time" if moment is None else f"open_time {utc_text(moment)}"
    values = ", ".join(f"{name}={candles[name][row]}" for name in (*_PRICES, "volume"))
    raise CandleError(
        f"{origin}: expected {rule}, found row {row + 1} with {when} and {values}{others}; {remedy}"
    )


def _check_times(candles: pl.DataFrame, interval: Interval, origin: str) -> None:
    times = candles["open_time"]
    _refuse(candles, times.is_null(), origin, "an open_time in every row", "give it or drop the row")
    ms = times.dt.epoch("ms")
    _refuse_repeated(ms, origin)
    _refuse_unordered(ms, origin)
    rule = f"open times on the {interval} grid (UTC)"
    remedy = "drop the row or name the interval that it has"
    _refuse(candles, off_grid(times, interval), origin, rule, remedy)
    following = candles.select(next_open(pl.col("open_time"), interval)).to_series()
    outside = (candles["close_time"] < times) | (candles["close_time"] >= following)
    rule = f"a close_time within the {interval} candle"
    _refuse(candles, outside, origin, rule, "correct close_time or leave the column out")


def off_grid(open_time: pl.Series, interval: Interval) -> pl.Series:
    """Which open times are none of the interval's."""
    if (step := interval.milliseconds) is None:
        return open_time.dt.truncate("1mo") != open_time
    return (open_time.dt.epoch("ms") - interval.phase_ms) % step != 0


def _refuse_repeated(ms: pl.Series, origin: str) -> None:
    repeated = ms.is_duplicated()
    if not repeated.any():
        return
    moment = ms.filter(repeated)[0]
    rows = [row + 1 for row in (ms == moment).arg_true()]
    more = int(ms.filter(repeated).n_unique()) - 1
    others = f" (and {more} more such time{'s' * (more > 1)})" if more else ""
    raise CandleError(
        f"{origin}: expected one row per open_time, found rows {' and '.join(map(str, rows))} with "
        f"open_time {utc_text(moment)}{others}; keep one of them"
    )


def _refuse_unordered(ms: pl.Series, origin: str) -> None:
    backwards = ms.diff() <= 0
    if not backwards.any():
        return
    row = int(backwards.arg_true()[0])
    raise CandleError(
        f"{origin}: expected the oldest row first, found row {row + 1} with open_time {utc_text(ms[row])} "
        f"after row {row} with {utc_text(ms[row - 1])}; sort the rows by open_time"
    )


def _value_rules() -> Iterator[tuple[pl.Expr, str, str]]:
    """What makes a row bad, the rule it breaks and the remedy; what is not known is bad."""
    for name in (*_PRICES, "volume"):
        bad = ~pl.col(name).is_finite()
        yield bad, f"a finite number in {name}", "correct the value or drop the row"
    for name in _PRICES:
        yield pl.col(name) <= 0, f"{name} above 0", "correct the price or drop the row"
    low, high, swapped = pl.col("low"), pl.col("high"), "correct the row; are the columns swapped?"
    yield high < low, "high >= low", swapped
    for name in ("open", "close"):
        yield (pl.col(name) < low) | (pl.col(name) > high), f"low <= {name} <= high", swapped
    yield pl.col("volume") < 0, "volume >= 0", "correct the volume or drop the row"
    for name in _OPTIONAL:
        column = pl.col(name)
        bad = ((column < 0) | ~column.cast(pl.Float64).is_finite()).fill_null(value=False)
        yield bad, f"{name} >= 0 or null", f"correct {name} or leave it empty"


_VALUE_RULES = tuple(_value_rules())
_BROKEN = [
    bad.fill_null(value=True).any().alias(str(number)) for number, (bad, _, _) in enumerate(_VALUE_RULES)
]


def _check_values(candles: pl.DataFrame, origin: str) -> None:
    """All rules in one query; which row broke one is asked once it is known that one did."""
    for (bad, rule, remedy), broken in zip(_VALUE_RULES, candles.select(_BROKEN).row(0), strict=True):
        if broken:
            _refuse(candles, candles.select(bad).to_series(), origin, rule, remedy)
