"""Parquet files whose bytes depend on their rows alone, and that a reader sees whole."""

import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from storage.atomic import atomic_path

__all__ = ["PARQUET_ERRORS", "parquet_bytes", "read_parquet", "read_parquets", "write_parquet"]

# A damaged file can also end in a panic of the reader, which is no PolarsError.
PARQUET_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """What a file of `frame` holds; equal frames give equal bytes, however they were put together."""
    buffer = io.BytesIO()  # polars tells a full disk only in words, Python by errno
    frame.write_parquet(
        buffer, compression="zstd", compression_level=3, statistics=True, row_group_size=262_144
    )
    return buffer.getvalue()


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write `frame` atomically."""
    content = parquet_bytes(frame)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_parquet(path: Path) -> pl.DataFrame:
    """The rows of one file, or one of PARQUET_ERRORS."""
    return read_parquets([path]).collect()


def read_parquets(paths: Sequence[Path]) -> pl.LazyFrame:
    """One scan over the files in that order, one of PARQUET_ERRORS when collected.

    The files are read here, each by one open: polars opens a path twice, once for the footer and once for the
    rows, and panics when a writer replaces the file in between (seen with 2.1.0).
    """
    return pl.scan_parquet([path.read_bytes() for path in paths], hive_partitioning=False)
