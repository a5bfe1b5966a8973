"""Read a series of the lake again and say what is wrong with it, a month at a time, each with its remedy."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from storage.errors import CandleError, LakeError
from storage.lake import Lake
from storage.ledger import Ledger, Part
from storage.parquet import PARQUET_ERRORS, read_parquet
from storage.schema import CANDLE_SCHEMA, SeriesKey, utc_text, validate_candles

__all__ = ["Finding", "verify_series"]

_REFETCH = "delete {path} and ingest the series again, which fetches that month anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something wrong with a series."""

    series: str
    month: str
    """`2024-06`, or empty where it is not one month's."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"{' '.join(part for part in (self.series, self.month) if part)}: {self.problem}; {self.remedy}."
        )


def verify_series(lake: Lake, ledger: Ledger, key: SeriesKey) -> list[Finding]:
    """What is wrong with a series: files, columns, order, duplicates, values, months, checksums, sources.

    Checksums are those of the files as they were written. Months written before the ledger kept them are
    checked in every other way.
    """
    try:
        parts, checksums = ledger.parts(key), ledger.files(key)
    except LakeError as error:
        problem, _, remedy = str(error).partition("; ")
        return [Finding(series=str(key), month="", problem=problem, remedy=remedy)]
    files = lake.files(key)
    findings = [
        Finding(
            series=str(key),
            month=month,
            problem=f"the ledger knows a file of this month, found none in {lake.folder(key)}",
            remedy="ingest the series again, which fetches the month",
        )
        for month in checksums
        if month not in files
    ]
    for month, path in files.items():
        findings += _verify_month(key, month, path, checksums.get(month), parts)
    return sorted(findings, key=lambda finding: finding.month)


def _verify_month(
    key: SeriesKey, month: str, path: Path, checksum: str | None, parts: list[Part]
) -> Iterator[Finding]:
    def found(problem: str) -> Finding:
        return Finding(series=str(key), month=month, problem=problem, remedy=_REFETCH.format(path=path))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    intact = checksum is None or digest == checksum
    try:
        candles = read_parquet(path)
    except PARQUET_ERRORS as error:
        yield found(f"expected candles, found a damaged file ({str(error).partition(chr(10))[0][:120]})")
        return
    if not intact:
        yield found(f"expected the file as it was written (sha256 {checksum}), found another ({digest})")
    if dict(candles.schema) != CANDLE_SCHEMA:
        yield found(f"expected the columns {', '.join(CANDLE_SCHEMA)}, found {dict(candles.schema)}")
        return
    try:
        validate_candles(candles, key.interval, origin=path.name)
    except CandleError as error:
        yield found(str(error).partition("; ")[0].removeprefix(f"{path.name}: "))
        return
    opened = candles["open_time"]
    if (outside := opened.filter(opened.dt.strftime("%Y-%m") != month)).len():
        yield found(f"expected candles of this month alone, found one of {utc_text(_ms(outside)[0])}")
    if (unknown := _without_source(_ms(opened), parts)).len():
        yield found(
            f"expected a source of every candle in the ledger, found none for {len(unknown)} from "
            f"{utc_text(unknown[0])} on"
        )


def _ms(times: pl.Series) -> pl.Series:
    return times.dt.epoch("ms")


def _without_source(opened: pl.Series, parts: list[Part]) -> pl.Series:
    """The open times that no part covers."""
    for part in parts:
        if opened.is_empty():
            break
        opened = opened.filter((opened < part.first_ms) | (opened > part.last_ms))
    return opened
