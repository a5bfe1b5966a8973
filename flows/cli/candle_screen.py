"""What the lake has, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from exchange.inventory import Inventory, take_inventory
from flows.cli.screen import candles_table, console
from storage.errors import LakeError
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey, utc_text

if TYPE_CHECKING:
    from tasks.refs import IngestRef, SeriesRef

__all__ = ["chosen_series", "list_candles", "show_ingested", "show_series", "wide_console"]


def show_ingested(ingested: IngestRef) -> None:
    """What an ingest did and what the lake holds now."""
    screen = wide_console()
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
    lake, ledger, screen = Lake(home.lake), Ledger(home.lake), wide_console()
    now_ms = time.time_ns() // 1_000_000
    held = [
        take_inventory(lake, ledger, key, now_ms=now_ms) for key in chosen_series(lake, home, names, interval)
    ]
    table = Table(title="The lake")
    for name in ("series", "candles", "from (UTC)", "to (UTC)", "holes", "behind", "last source", "MB"):
        table.add_column(name, no_wrap=True)
    for one in held:
        counts = ((one.count(status), status) for status in ("outage", "open", "repaired", "stale"))
        table.add_row(
            str(one.key),
            f"{one.rows:,}",
            utc_text(one.first_ms)[:16],
            utc_text(one.last_ms)[:16],
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


def chosen_series(lake: Lake, home: Home, names: Sequence[str], interval: str | None) -> list[SeriesKey]:
    """The series of the lake, or those of that name and interval. A name that it does not have is a LakeError."""
    keys = [key for key in lake.series() if interval is None or key.interval.name == interval]
    if unknown := [name for name in names if name not in {key.name for key in keys}]:
        raise LakeError(
            f"Expected {', '.join(unknown)} in {home.lake}, found none; ingest it first, or choose among "
            f"{', '.join(sorted({key.name for key in keys})) or 'what `kronos ingest` brings'}."
        )
    if not keys:
        raise LakeError(f"Expected candles in {home.lake}, found none; run `kronos ingest` first.")
    return [key for key in keys if not names or key.name in names]


def wide_console() -> Console:
    """Full width in a terminal; wide enough for the tables in a pipe or a log."""
    return Console(width=None if sys.stdout.isatty() else 160)
