"""From the columns that people and exchanges write to those of a candle: names, epochs, dates, numbers."""

import polars as pl

from storage.errors import CandleError
from storage.schema import CANDLE_SCHEMA, utc_text

__all__ = ["BINANCE_COLUMNS", "canonical_columns", "epoch_times"]

# Binance's order; the last column of its dumps, "ignore", holds nothing and is missing in some of them.
BINANCE_COLUMNS = (
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
    "ignore",
)

# Where a file has several of these the first counts.
_ALIASES: dict[str, tuple[str, ...]] = {
    "open_time": ("open_time", "timestamps", "timestamp", "datetime", "date", "time"),
    "quote_volume": ("quote_volume", "quote_asset_volume", "amount"),
    "trades": ("trades", "count", "number_of_trades"),
    "taker_buy_volume": ("taker_buy_volume", "taker_buy_base_asset_volume", "taker_buy_base"),
    "taker_buy_quote_volume": ("taker_buy_quote_volume", "taker_buy_quote_asset_volume", "taker_buy_quote"),
}
_TIMES = ("open_time", "close_time")

# The borders that tell epoch units apart: 10^11 s is the year 5138, 10^11 ms is 1973, 10^14 us is 1973.
_SECONDS_BELOW = 10**11
_MICROSECONDS_FROM = 10**14
_NANOSECONDS_FROM = 10**17

# Tried first and on all rows at once, since a million dates in every format take ten seconds.
_USUAL_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%.3fZ")
_ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")
_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")


def canonical_columns(frame: pl.DataFrame, *, origin: str) -> pl.DataFrame:
    """The candle columns that `frame` has, under their names and with times and numbers parsed.

    Columns of other names are left out. Rules about the values are for `validate_candles`.
    """
    named = _named(frame)
    for name in _TIMES:
        if name in named.columns:
            named = named.with_columns(_times(named[name], origin))
    for name in named.columns:
        if name not in _TIMES:
            named = named.with_columns(_numbers(named[name], named, origin))
    return named


def epoch_times(values: pl.Series, *, origin: str) -> pl.Series:
    """UTC times from integers in ms or us since 1970, told apart row by row; other units are refused."""
    for outside, unit, remedy in (
        (values.abs() < _SECONDS_BELOW, "seconds", "multiply by 1000"),
        (values >= _NANOSECONDS_FROM, "nanoseconds", "divide by 1000000"),
    ):
        if outside.any():
            row = int(outside.arg_true()[0])
            meaning = f" ({utc_text(values[row] * 1000)})" if unit == "seconds" else ""
            raise CandleError(
                f"{origin}: expected {values.name} in milliseconds since 1970, found {values[row]} in row "
                f"{row + 1}, which looks like {unit}{meaning}; {remedy}"
            )
    ms = pl.DataFrame(values.alias("t")).select(
        pl.when(pl.col("t") >= _MICROSECONDS_FROM).then(pl.col("t") // 1000).otherwise(pl.col("t"))
    )
    return ms.to_series().cast(pl.Datetime("ms", "UTC")).alias(values.name)


def _named(frame: pl.DataFrame) -> pl.DataFrame:
    found: dict[str, str] = {}
    for column in frame.columns:
        found.setdefault("_".join(column.lower().split()), column)
    chosen: list[pl.Expr] = []
    for name in CANDLE_SCHEMA:
        columns = [found[alias] for alias in _ALIASES.get(name, (name,)) if alias in found]
        chosen.extend(pl.col(column).alias(name) for column in columns[:1])
    return frame.select(chosen)


def _times(values: pl.Series, origin: str) -> pl.Series:
    kind = values.dtype
    if isinstance(kind, pl.Datetime):
        return values
    if kind == pl.Date:
        return values.cast(pl.Datetime("ms", "UTC"))
    text = values if kind == pl.String else values.cast(pl.String)
    if kind.is_float():
        text = values.cast(pl.Int64, strict=False).cast(pl.String)
    text = text.str.strip_chars()
    epochs = _integers(text)
    if epochs.null_count() == 0:
        return epoch_times(epochs, origin=origin)
    dates = _dates(text)
    _refuse_unreadable(dates, text, origin)
    return dates


def _integers(text: pl.Series) -> pl.Series:
    """Integers, also as spreadsheets write them: 1717200000000.0 or 1.7172E+12."""
    plain = text.cast(pl.Int64, strict=False)
    if plain.null_count() == 0:
        return plain
    decimal = text.cast(pl.Float64, strict=False)
    whole = decimal.is_finite() & (decimal.floor() == decimal) & (decimal.abs() < 2**53)
    return pl.DataFrame([plain.alias("plain"), decimal.alias("decimal"), whole.alias("whole")]).select(
        pl.coalesce("plain", pl.when("whole").then(pl.col("decimal")).cast(pl.Int64, strict=False)).alias(
            text.name
        )
    )[text.name]


def _dates(text: pl.Series) -> pl.Series:
    """ISO 8601 dates and times, with `/` for `-` too; without a zone they are UTC."""
    for usual in _USUAL_FORMATS:
        dates = text.str.to_datetime(usual, time_unit="ms", strict=False).dt.replace_time_zone("UTC")
        if dates.null_count() == 0:
            return dates
    plain = (
        pl.col(text.name)
        .str.replace(r"^(\d{4})/(\d\d?)/(\d\d?)", "$1-$2-$3")
        .str.replace(r"^(\d{4}-\d\d?-\d\d?)[Tt]", "$1 ")
        .str.replace(r"^(\d{4}-\d\d?-\d\d?)$", "$1 00:00")
        .str.replace(r"\s*(?:[Zz]|UTC|GMT)$", "")
        .str.replace(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d):?(\d\d)$", "$1$2:$3")
    )
    zoned = [plain.str.to_datetime(form, time_unit="ms", strict=False) for form in _ZONED_FORMATS]
    naive = [plain.str.to_datetime(form, time_unit="ms", strict=False) for form in _FORMATS]
    utc = [*zoned, *(dates.dt.replace_time_zone("UTC") for dates in naive)]
    return text.to_frame().select(pl.coalesce(utc))[text.name]


def _refuse_unreadable(dates: pl.Series, text: pl.Series, origin: str) -> None:
    if dates.null_count():
        row = int(dates.is_null().arg_true()[0])
        raise CandleError(
            f"{origin}: expected {text.name} as milliseconds since 1970 or a date such as 2024-06-01 13:00, "
            f"found {text[row]!r} in row {row + 1}; write it so"
        )


def _numbers(values: pl.Series, rows: pl.DataFrame, origin: str) -> pl.Series:
    if values.dtype != pl.String:
        return values.cast(pl.Float64) if values.dtype.is_decimal() else values
    text = values.str.strip_chars().replace("", None)
    numbers = text.cast(pl.Float64, strict=False)
    unreadable = numbers.is_null() & text.is_not_null()
    if unreadable.any():
        row = int(unreadable.arg_true()[0])
        when = rows["open_time"].dt.epoch("ms")[row] if "open_time" in rows.columns else None
        at = "" if when is None else f" at open_time {utc_text(when)}"
        raise CandleError(
            f"{origin}: expected a number in {values.name}, found {text[row]!r} in row {row + 1}{at}; "
            "write it with a decimal point and no other signs"
        )
    return numbers
