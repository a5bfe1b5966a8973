"""What commands are asked with: the options that several have, and what was chosen with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import reduce, wraps
from typing import TYPE_CHECKING, Any

import click

from flows.cli.terminal import names, start
from flows.cli.values import Number, WholeNumber, klines_folder, typed_day

if TYPE_CHECKING:
    from storage.layout import Home

__all__ = ["END", "KLINES", "PORT", "REHEARSAL_SPEED", "SET", "START", "Chosen", "run_options"]

PORT = WholeNumber(0, 65_535)
START = click.option("--start", type=typed_day, metavar="DAY", help="First day to use, UTC.")
END = click.option("--end", type=typed_day, metavar="DAY", help="First day not to use, UTC.")
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable."
)
_RECIPE = click.option(
    "--recipe", "-r", default="demo", show_default=True, help="Which recipe; `kronos recipes` lists them."
)
_SERIES = click.option(
    "--series", help="Other series than the recipe's: market:SYMBOL, comma-separated, e.g. um:DOGEUSDT."
)
_INTERVAL = click.option("--interval", help="Another candle interval than the recipe's, e.g. 4h.")
KLINES = click.option(
    "--klines",
    type=klines_folder,
    metavar="DIR",
    help="Take candles from this folder, served by a replay exchange, instead of Binance.",
)
REHEARSAL_SPEED = click.option(
    "--speed",
    type=Number(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Exchange seconds per second with --klines.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A recipe, and what a run of it was asked to do otherwise, as it was typed."""

    recipe: str
    assignments: tuple[str, ...]
    series: str | None = None
    interval: str | None = None
    start: date | None = None
    end: date | None = None
    klines: str | None = None

    def begin(self, obj: dict[str, Any], *, series: list[str] | None = None) -> Home:
        """The home, with a Prefect server on its way; what cannot be is told before anything is made or started.

        `series` are those that the flow will take from what the command was asked besides.
        """
        self.parameters(series)
        return start(obj, flow=True)

    def call(self, obj: dict[str, Any], flow: Callable[..., Any], **more: Any) -> Any:
        """Call a flow with it, once the server answers."""
        parameters = self.parameters()
        if server := obj["server"]:
            server.wait_until_healthy(threading.Event())
        return flow(self.recipe, **parameters, **_given(more))

    def parameters(self, series: list[str] | None = None) -> dict[str, Any]:
        """What every flow of a recipe takes. Raises ConfigError or StorageError for what cannot be."""
        from flows.config import parse_assignments
        from flows.recipes import configure

        settings: dict[str, Any] = {**parse_assignments(self.assignments)}
        if self.klines:
            settings["replay"] = self.klines
        parameters = _given(
            {
                "series": None if self.series is None else names(self.series),
                "interval": self.interval,
                "start": self.start,
                "end": self.end,
                "settings": settings or None,
            }
        )
        configure(self.recipe, **{**parameters, **_given({"series": series})})
        return parameters


def run_options(
    *, series: bool = True, klines: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a run of a recipe, which the command gets as one Chosen before its own."""
    options = [_RECIPE]
    options += [_SERIES, _INTERVAL, START, END] if series else []
    options += [KLINES, SET] if klines else [SET]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gathered(*arguments: Any, **typed: Any) -> Any:
            chosen = {name: typed.pop(name) for name in Chosen.__slots__ if name in typed}
            return command(*arguments, Chosen(**chosen), **typed)

        return reduce(lambda decorated, option: option(decorated), reversed(options), gathered)

    return decorate


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
