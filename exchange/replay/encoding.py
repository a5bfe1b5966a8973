"""Candles as the JSON rows that Binance sends: 12 columns, decimals in strings.

A number is sent as the shortest decimal that reads back as the same float, never with an exponent, and
zero-padded as Binance pads it: to 8 decimals on spot, to the series' own precision on futures.
"""

from collections.abc import Mapping
from decimal import Decimal

import polars as pl

from storage.schema import CANDLE_SCHEMA

__all__ = ["DECIMAL_COLUMNS", "decimal_text", "decimal_texts", "json_rows", "precision_of", "wire_columns"]

DECIMAL_COLUMNS = tuple(name for name, kind in CANDLE_SCHEMA.items() if kind == pl.Float64())
MOST_DECIMALS = 8
SAMPLE_ROWS = 2000  # enough to see the precision of a series


def precision_of(candles: pl.DataFrame) -> dict[str, int]:
    """Decimals that each column needs, at most 8. The four prices share one precision."""
    sample = candles.head(SAMPLE_ROWS)
    found = {name: _places(sample[name]) for name in DECIMAL_COLUMNS}
    price = max(found[name] for name in DECIMAL_COLUMNS[:4])
    return found | dict.fromkeys(DECIMAL_COLUMNS[:4], price)


def decimal_text(value: float, decimals: int = 0) -> str:
    """One number as Binance writes it."""
    return str(decimal_texts(pl.Series([value], dtype=pl.Float64), decimals)[0])


def decimal_texts(values: pl.Series, decimals: int = 0) -> pl.Series:
    """Finite floats as the shortest exact decimals with at least so many places."""
    texts = values.cast(pl.String)
    if texts.str.contains("e", literal=True).any():
        texts = pl.Series([_plain(text) for text in texts], dtype=pl.String)
    if not decimals:
        return texts.str.strip_suffix(".0")
    width = texts.str.find(".", literal=True) + (1 + decimals)
    return texts.str.pad_end(width, "0")


def json_rows(candles: pl.DataFrame, decimals: Mapping[str, int]) -> pl.Series:
    """One JSON array per candle, as text. Nothing in `candles` may be null."""
    row = '[{},"{}","{}","{}","{}","{}",{},"{}",{},"{}","{}","0"]'
    return wire_columns(candles, decimals).select(pl.format(row, *CANDLE_SCHEMA)).to_series()


def wire_columns(candles: pl.DataFrame, decimals: Mapping[str, int]) -> pl.DataFrame:
    """Candles with their times in ms and their decimals as texts."""
    texts = [decimal_texts(candles[name], decimals[name]).alias(name) for name in DECIMAL_COLUMNS]
    return candles.with_columns(*texts, pl.col("open_time", "close_time").dt.epoch("ms"))


def _places(values: pl.Series) -> int:
    texts = decimal_texts(values, 1)
    places = texts.str.len_chars().cast(pl.Int64) - texts.str.find(".", literal=True).cast(pl.Int64) - 1
    whole = (values == values.round()).all()
    return 0 if whole else min(int(places.max()), MOST_DECIMALS)  # type: ignore[arg-type]  # no nulls here


def _plain(text: str) -> str:
    plain = format(Decimal(text), "f")
    return plain if "." in plain else plain + ".0"
