"""What the lake has, and whether it is sound, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from exchange.inventory import Inventory, take_inventory
from flows.cli.screen import candles_table, console, time_text
from storage.errors import LakeError
from storage.interval import Interval
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey, utc_text

if TYPE_CHECKING:
    from exchange.connect import Exchange
    from storage.verify import Finding
    from tasks.refs import IngestRef, SeriesRef

__all__ = ["list_candles", "show_ingested", "show_series", "verify_lake"]


def show_ingested(ingested: IngestRef) -> None:
    """What an ingest did and what the lake holds now."""
    screen = _wide_console()
    if ingested.series:
        screen.print(candles_table([asdict(one) for one in ingested.series]))
    if zips := sum(one.zips for one in ingested.series):
        screen.print(f"{zips} zips of the bulk archive were taken.")
    if failed := sum(one.failed_parts for one in ingested.series):
        screen.print(
            f"[yellow]note:[/] {failed} zips could not be used as they were, and other sources stood in; "
            "`kronos candles` says why.",
        )
    if ingested.report:
        screen.print(f"Report: {ingested.report}", highlight=False, soft_wrap=True)


def show_series(series: Sequence[SeriesRef]) -> None:
    """What the lake holds of each series."""
    console().print(candles_table([asdict(one) for one in series]))


def list_candles(home: Home, names: Sequence[str], interval: str | None) -> None:
    """The inventory of the lake, or of some series, and what is to be known of it."""
    lake, ledger, screen = Lake(home.lake), Ledger(home.lake), _wide_console()
    now_ms = time.time_ns() // 1_000_000
    held = [
        take_inventory(lake, ledger, key, now_ms=now_ms)
        for key in _chosen_series(lake, home, names, interval)
    ]
    table = Table(title="The lake")
    for name in ("series", "candles", "from (UTC)", "to (UTC)", "holes", "behind", "last source", "MB"):
        table.add_column(name, no_wrap=True)
    for one in held:
        counts = ((one.count(status), status) for status in ("outage", "open", "repaired", "stale"))
        table.add_row(
            str(one.key),
            f"{one.rows:,}",
            time_text(one.first_ms),
            time_text(one.last_ms),
            ", ".join(f"{count} {status}" for count, status in counts if count),
            f"{one.behind:,}",
            one.last_source.replace("https://", "").replace("http://", ""),
            f"{one.bytes / 1e6:,.1f}",
        )
    screen.print(table)
    for one in held:
        for line in _notes(one):
            screen.print(f"  {one.key}: {line}", highlight=False, soft_wrap=True)


def _notes(held: Inventory) -> list[str]:
    """Holes that are open or have a name, a stale end, and the archive's failures."""
    notes = [
        f"{hole.status} hole of {hole.candles:,} candles from {utc_text(hole.start_ms)}"
        + (f": {held.names[hole.start_ms]}" if hole.start_ms in held.names else "")
        for hole in held.holes
        if hole.status == "open" or hole.start_ms in held.names
    ]
    if held.tail:
        notes.append(
            f"stale: nothing since {utc_text(held.tail.start_ms)} when the exchange was asked for "
            f"{utc_text(held.tail.end_ms)}; is the symbol delisted or halted?"
        )
    return notes + [failure.reason for failure in held.failures]


def verify_lake(
    home: Home,
    names: Sequence[str],
    *,
    interval: str | None,
    sample: int,
    seed: int,
    settings: Mapping[str, Any],
) -> bool:
    """Whether every series is sound; what is wrong is printed, each with its remedy."""
    from flows.recipes import configure
    from storage.verify import verify_series

    lake, ledger, screen = Lake(home.lake), Ledger(home.lake), _wide_console()
    keys = _chosen_series(lake, home, names, interval)
    config = configure("demo", settings)
    findings: dict[SeriesKey, list[Finding]] = {key: verify_series(lake, ledger, key) for key in keys}
    if sample:
        from exchange.connect import connected

        places = (config.exchange, config.archive)
        with connected(home.lake, config.replay, keys, *places, seed=config.seed, reads=True) as exchange:
            for key in keys:
                if not findings[key]:
                    findings[key] += _compare(exchange, lake, ledger, key, sample=sample, seed=seed)
    compared = f"{sample} pages and zips of each compared with the exchange" if sample else "nothing compared"
    for key, wrong in findings.items():
        state = f"[red]{len(wrong)} wrong[/]" if wrong else "[green]sound[/]"
        screen.print(f"{key}: {state}, {len(lake.files(key))} months", highlight=False)
        for finding in wrong:
            screen.print(f"  {finding}", highlight=False, soft_wrap=True, markup=False)
    total = sum(map(len, findings.values()))
    screen.print(f"{len(keys)} series read again, {compared}: {total or 'nothing'} wrong.")
    return total == 0


def _compare(
    exchange: Exchange, lake: Lake, ledger: Ledger, key: SeriesKey, *, sample: int, seed: int
) -> list[Finding]:
    from exchange.audit import compare_archive, compare_pages

    with exchange.client(key.market) as client:
        findings = compare_pages(client, lake, key, pages=sample, seed=seed)
    archive = exchange.archive(key.market)
    if archive is not None:
        findings += compare_archive(archive, lake, ledger, key, parts=sample, seed=seed)
    return findings


def _chosen_series(lake: Lake, home: Home, names: Sequence[str], interval: str | None) -> list[SeriesKey]:
    """The series of the lake, or those of that name and interval.

    Raises CandleError for what is no interval or no name, LakeError for one that the lake does not have.
    """
    wanted = None if interval is None else Interval(interval)
    for name in names:
        SeriesKey.parse(name, wanted or "1h")
    held = lake.series()
    keys = [key for key in held if wanted is None or key.interval == wanted]
    if held and not keys:
        there = ", ".join(str(one) for one in sorted({key.interval for key in held}))
        raise LakeError(
            f"Expected candles of {wanted} in {home.lake}, found those of {there}; choose one of these, or bring it "
            f"with `kronos ingest --interval {wanted}`."
        )
    if unknown := [name for name in names if name not in {key.name for key in keys}]:
        raise LakeError(
            f"Expected {', '.join(unknown)} in {home.lake}, found none; ingest it first, or choose among "
            f"{', '.join(sorted({key.name for key in keys})) or 'what `kronos ingest` brings'}."
        )
    if not keys:
        raise LakeError(f"Expected candles in {home.lake}, found none; run `kronos ingest` first.")
    return [key for key in keys if not names or key.name in names]


def _wide_console() -> Console:
    """Full width in a terminal; wide enough for the tables in a pipe or a log."""
    return Console(width=None if sys.stdout.isatty() else 160)
