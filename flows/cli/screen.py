"""What all screens are made with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.schema import utc_text

__all__ = ["candles_table", "console", "lines", "noted", "number", "time_text"]


def console() -> Console:
    """Full width in a terminal; wide enough for the tables in a pipe or a log. Brackets and colons are no markup."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def lines() -> Console:
    """Long lines stay whole, to be copied; brackets and colons are no markup."""
    return Console(soft_wrap=True, markup=False, emoji=False)


def candles_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the lake holds of each series after an ingest."""
    table = Table(
        "series", "interval", "candles", "from (UTC)", "to (UTC)", "new", "requests", "holes", title="Candles"
    )
    for row in rows:
        table.add_row(
            row["series"],
            row["interval"],
            f"{row['rows']:,}",
            time_text(row["first_ms"]),
            time_text(row["last_ms"]),
            f"{row['added']:,}",
            str(row["requests"]),
            str(row["holes"]),
        )
    return table


def noted(sentence: str) -> Text:
    """Something that is worth knowing."""
    return Text.assemble(("note:", "yellow"), " ", sentence)


def number(value: float | None, digits: int = 3) -> str:
    """Empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def time_text(ms: int) -> str:
    """`2024-06-01 00:00`, UTC."""
    return utc_text(ms)[:16]
