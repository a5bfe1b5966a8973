"""What people read, filled into the templates of this room: HTML is escaped, and no control character gets through."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

__all__ = ["day", "leaderboard_name", "render"]


def render(template: str, **context: Any) -> str:
    """templates/<template>.j2, filled in; jinja2.UndefinedError where the context lacks a name."""
    return _environment().get_template(f"{template}.j2").render(context)


def leaderboard_name(row: Mapping[str, Any]) -> str:
    """A row's model; of what is served, also that it is."""
    name = str(row["model"])
    return f"served: {name}" if row.get("served") else name


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks.reports"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "day": day, "figure": _figure, "named": leaderboard_name}
    return environment


def _visible(value: Any) -> Any:
    """Text with its control characters spelled out, ESC as \\x1b: a terminal would obey them, a browser hide them."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in value)


def _cell(value: object) -> str:
    """In a table of markdown, where a line break or a bar would end the cell."""
    return " ".join(str(value).split("\n")).replace("|", "\\|")


def day(moment_ms: int) -> str:
    """The day of a time in ms since the epoch, UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC).strftime("%Y-%m-%d")


def _figure(value: float | None, shape: str = ".2f", none: str = "n/a") -> str:
    return none if value is None else format(value, shape).replace("%", " %")
