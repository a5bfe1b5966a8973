"""Candle files that people bring and take: CSV, JSON and Parquet.

Whatever breaks a rule is refused with the row that breaks it; nothing is sorted, dropped or filled.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from storage.atomic import atomic_path
from storage.errors import CandleError
from storage.interval import Interval
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet
from storage.parse import BINANCE_COLUMNS, canonical_columns
from storage.schema import SeriesKey, validate_candles

__all__ = ["read_candles", "read_folder", "write_candles", "write_table"]

_SHOWN = 3  # files of a folder


def read_candles(path: Path, interval: Interval) -> pl.DataFrame:
    """The validated candles of a .csv, .json or .parquet file.

    Times are milliseconds or microseconds since 1970, told apart row by row, or ISO dates (UTC unless they
    name a zone). CSV: Binance's dumps with or without their header, or any header with a time (open_time,
    timestamps, timestamp, datetime, date, time), open, high, low, close, volume and perhaps amount or
    quote_volume. JSON: a list of Binance's rows or of records. Other columns are left out.
    """
    read = _READERS[_suffix(path)]
    if not path.is_file():
        raise CandleError(f"expected a file of candles at {path}, found none; correct the path")
    raw = read(path)
    if raw.is_empty():
        raise CandleError(f"{path}: expected candles, found an empty file; download or export it again")
    return validate_candles(canonical_columns(raw, origin=str(path)), interval, origin=str(path))


def read_folder(folder: Path, interval: Interval) -> dict[SeriesKey, pl.DataFrame]:
    """All candle files of that interval in a folder, named such as `um_DOGEUSDT_1h.parquet`.

    Files of other intervals and files that are neither CSV, JSON nor Parquet are left alone.
    """
    paths: dict[SeriesKey, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in _READERS or path.name.startswith("."):
            continue
        key = _key_of(path)
        if key.interval != interval:
            continue
        if key in paths:
            raise CandleError(
                f"expected one file of {key}, found {paths[key].name} and {path.name}; remove one"
            )
        paths[key] = path
    if not paths:
        raise CandleError(
            f"expected files such as um_DOGEUSDT_{interval}.parquet in {folder}, found none; "
            "correct the folder or the interval"
        )
    return {key: read_candles(path, interval) for key, path in sorted(paths.items())}


def write_candles(frame: pl.DataFrame, path: Path) -> None:
    """Write candles as `write_table` does; CandleError for a file of another kind."""
    _suffix(path)
    write_table(frame, path)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write rows atomically as .csv (ISO times), .json (records, times in ms) or .parquet."""
    buffer, times, suffix = io.BytesIO(), pl.selectors.datetime(), path.suffix.lower()
    if suffix == ".parquet":
        write_parquet(frame, path)
        return
    if suffix == ".csv":
        frame.with_columns(times.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")).write_csv(buffer)
    else:
        frame.with_columns(times.dt.epoch("ms")).write_json(buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _suffix(path: Path) -> str:
    suffix, known = path.suffix.lower(), ", ".join(_READERS)
    if path.is_dir():
        raise CandleError(
            f"expected a file that ends in {known}, found the folder {path.resolve()}, {_inside(path)}"
        )
    if suffix not in _READERS:
        raise CandleError(f"expected a file that ends in {known}, found {path.name}; convert or rename it")
    return suffix


def _inside(folder: Path) -> str:
    """Which candle files are in a folder, and what to do."""
    files = sorted(one.name for one in folder.iterdir() if one.suffix.lower() in _READERS and one.is_file())
    if not files:
        return "which has no such file; name one"
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"which has {', '.join(files[:_SHOWN])}{more}; name one of them"


def _key_of(path: Path) -> SeriesKey:
    market, _, rest = path.stem.partition("_")
    symbol, _, interval = rest.rpartition("_")
    try:
        return SeriesKey.parse(f"{market}:{symbol}", Interval.of_slug(interval))
    except CandleError as error:
        raise CandleError(
            f"expected a name such as um_DOGEUSDT_1h{path.suffix}, found {path.name} ({error}); rename it"
        ) from error


def _read_csv(path: Path) -> pl.DataFrame:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return pl.DataFrame()
    first = content.lstrip().split(b"\n", 1)[0].decode("utf-8", errors="replace").strip()
    headed = not _is_number(first.split(",", 1)[0].strip('" '))
    try:
        raw = pl.read_csv(io.BytesIO(content), has_header=headed, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise CandleError(
            f"{path}: expected comma-separated text with as many fields in every row, "
            f"found otherwise ({error}); export it again"
        ) from error
    raw = raw.filter(~pl.all_horizontal(pl.all().is_null()))
    return raw if headed else _name_binance(raw, path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _name_binance(raw: pl.DataFrame, path: Path) -> pl.DataFrame:
    if raw.width not in (len(BINANCE_COLUMNS) - 1, len(BINANCE_COLUMNS)):
        raise CandleError(
            f"{path}: expected a header or Binance's 11 or 12 columns, found {raw.width} columns without "
            "a header; add one such as timestamp,open,high,low,close,volume"
        )
    return raw.rename(dict(zip(raw.columns, BINANCE_COLUMNS, strict=False)))


def _read_json(path: Path) -> pl.DataFrame:
    content = path.read_bytes()
    if not content.strip():
        return pl.DataFrame()
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise CandleError(f"{path}: expected JSON, found otherwise ({error}); export it again") from error
    if not isinstance(rows, list):
        raise CandleError(
            f"{path}: expected a JSON list of candles, found {type(rows).__name__}; write a list"
        )
    if all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return _text_frame({name: [row.get(name) for row in rows] for name in names})
    if all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        columns = zip(*rows, strict=True)
        return _name_binance(_text_frame({f"column_{at}": list(one) for at, one in enumerate(columns)}), path)
    raise CandleError(
        f"{path}: expected rows that are all records or all lists of one length, found a mix; export it again"
    )


def _text_frame(columns: dict[str, list[Any]]) -> pl.DataFrame:
    """Text throughout: JSON mixes numbers and quoted numbers, and `str` of a float is exact."""
    text = {
        name: [None if value is None else str(value) for value in values] for name, values in columns.items()
    }
    return pl.DataFrame(text, schema=dict.fromkeys(text, pl.String))


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return read_parquet(path)
    except PARQUET_ERRORS as error:
        raise CandleError(f"{path}: expected Parquet, found a damaged file; export it again") from error


_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
