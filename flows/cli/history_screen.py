"""Who served a recipe, on a terminal."""

from __future__ import annotations

from rich.table import Column, Table

from flows.cli.screen import console
from storage.layout import Home
from storage.registry import read_history

__all__ = ["show_history"]


def show_history(home: Home, recipe: str) -> None:
    """Who served a recipe, since when and why; the last line serves."""
    table = Table("since (UTC)", "night", "MLflow run", "by", Column("why", overflow="fold"))
    table.title = f"Champions of {recipe}, the last one serves"
    for one in (change.champion for change in read_history(home, recipe)):
        table.add_row(
            one.since[:16].replace("T", " "), one.night, one.mlflow_run[:8], one.by, "; ".join(one.reasons)
        )
    console().print(table)
