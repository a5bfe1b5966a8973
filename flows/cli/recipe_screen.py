"""What the terminal shows of recipes, their settings, and who served them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Column, Table

from flows.cli.screen import console
from flows.config import RunConfig, knobs
from storage.layout import Home
from storage.registry import read_history

__all__ = ["show_history", "show_recipe", "show_recipes"]


def show_recipes(recipes: Mapping[str, Callable[[], RunConfig]]) -> None:
    """One line per recipe."""
    table = Table("recipe", "what it is", title="Recipes")
    for name, function in recipes.items():
        table.add_row(name, (function.__doc__ or "").strip().splitlines()[0])
    console().print(table)


def show_recipe(config: RunConfig) -> None:
    """Every setting with its value, type and meaning."""
    table = Table("setting", "value", "type", "meaning", title=f"Recipe {config.recipe}", show_lines=False)
    for knob in knobs(config):
        table.add_row(knob.path, _value(knob.value), knob.kind, " ".join(knob.help.split()))
    console().print(table)
    console().print("Change any of them with --set SETTING=VALUE.")


def show_history(home: Home, recipe: str) -> None:
    """Who served a recipe, since when and why; the last line serves."""
    table = Table("since (UTC)", "night", "MLflow run", "by", Column("why", overflow="fold"))
    table.title = f"Champions of {recipe}, the last one serves"
    for one in (change.champion for change in read_history(home, recipe)):
        table.add_row(
            one.since[:16].replace("T", " "), one.night, one.mlflow_run[:8], one.by, "; ".join(one.reasons)
        )
    console().print(table)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
