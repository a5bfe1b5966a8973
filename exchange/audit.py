"""Hold a series of the lake against the exchange: a seeded sample of pages and of the archive's checksums."""

import random
from collections.abc import Iterator

import polars as pl

from exchange.archive import ArchiveClient
from exchange.archive_parts import PartKind
from exchange.errors import ArchiveError
from exchange.klines import PAGE_LIMITS
from exchange.rest import RestClient
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import CANDLE_SCHEMA, SeriesKey, utc_text
from storage.verify import Finding

__all__ = ["compare_archive", "compare_pages"]

_VALUES = [name for name in CANDLE_SCHEMA if name != "open_time"]


def compare_pages(client: RestClient, lake: Lake, key: SeriesKey, *, pages: int, seed: int) -> list[Finding]:
    """Fetch pages at random times of a series again and compare them with the lake, value by value."""
    span = lake.span(key)
    if span is None or not pages:
        return []
    interval, dice, server_ms = key.interval, random.Random(f"{seed}:{key}"), client.server_time_ms()
    length = interval.count(span.first_ms, span.last_ms)
    findings: list[Finding] = []
    for _ in range(pages):
        start_ms = interval.floor(dice.randint(span.first_ms, span.last_ms))
        end_ms = start_ms
        for _ in range(min(PAGE_LIMITS[key.market], length)):
            end_ms = interval.next(end_ms)
        end_ms = min(end_ms, interval.next(span.last_ms))
        asked = client.pages(key, start_ms, end_ms, server_ms=server_ms)
        theirs = pl.concat([pl.DataFrame(schema=CANDLE_SCHEMA), *asked])
        findings += _differences(lake, key, lake.read(key, start_ms, end_ms), theirs)
    return list({(one.month, one.problem): one for one in findings}.values())


def compare_archive(
    archive: ArchiveClient, lake: Lake, ledger: Ledger, key: SeriesKey, *, parts: int, seed: int
) -> list[Finding]:
    """Ask for the CHECKSUM of some of the zips that a series came from: files there change later."""
    known = [part for part in ledger.parts(key) if part.source.kind == "archive" and part.source.sha256]
    chosen = random.Random(f"{seed}:{key}").sample(known, min(parts, len(known)))
    findings = []
    for part in chosen:
        name = part.source.detail
        period = name.removesuffix(".zip").removeprefix(f"{key.symbol}-{key.interval.slug}-")
        kind: PartKind = "daily" if period.count("-") == 2 else "monthly"
        try:
            stated = archive.checksum(archive.part(key, kind, period))
        except ArchiveError as error:
            problem = str(error).partition("; ")[0]
        else:
            problem = f"{name} had the sha256 {part.source.sha256} when it was taken and has {stated} now"
            if stated == part.source.sha256:
                continue
        findings.append(_finding(lake, key, period[:7], problem))
    return findings


def _differences(lake: Lake, key: SeriesKey, ours: pl.DataFrame, theirs: pl.DataFrame) -> Iterator[Finding]:
    """What differs, told once for each month and way."""
    both = ours.join(theirs, on="open_time", suffix="_theirs").sort("open_time")
    unequal = [pl.col(name).ne_missing(pl.col(f"{name}_theirs")) for name in _VALUES]
    kinds = {
        "that the lake lacks": theirs.join(ours, on="open_time", how="anti"),
        "that the exchange does not have": ours.join(theirs, on="open_time", how="anti"),
        "with other values": both.filter(pl.any_horizontal(unequal)),
    }
    for kind, rows in kinds.items():
        months = rows.sort("open_time").group_by(
            pl.col("open_time").dt.strftime("%Y-%m"), maintain_order=True
        )
        for (month,), part in months:
            first = utc_text(part["open_time"].dt.epoch("ms")[0])
            detail = _values(part.row(0, named=True)) if kind == "with other values" else ""
            found = f"found {len(part)} {kind}, the first of {first}{detail}"
            yield _finding(lake, key, str(month), f"expected the exchange's candles, {found}")


def _values(row: dict[str, object]) -> str:
    found = next(name for name in _VALUES if row[name] != row[f"{name}_theirs"])
    return f" ({found} {row[found]}, at the exchange {row[f'{found}_theirs']})"


def _finding(lake: Lake, key: SeriesKey, month: str, problem: str) -> Finding:
    path = lake.folder(key) / f"month={month}" / "candles.parquet"
    remedy = f"delete {path} and ingest the series again, which fetches that month anew"
    return Finding(series=str(key), month=month, problem=problem, remedy=remedy)
