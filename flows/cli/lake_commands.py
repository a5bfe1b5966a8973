"""`kronos candles` and `kronos verify`. They import what they need when they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from flows.cli.terminal import names, start

__all__ = ["candles", "verify"]


@click.command()
@click.option("--series", help="Only these series: market:SYMBOL, comma-separated, e.g. um:DOGEUSDT.")
@click.option("--interval", help="Only series of this candle interval.")
@click.pass_obj
def candles(obj: dict[str, Any], series: str | None, interval: str | None) -> None:
    """Say what the lake has: range, holes and why, freshness, sources, bytes."""
    home = start(obj)
    from flows.cli.lake_screen import list_candles

    list_candles(home, names(series or ""), interval)


@click.command()
@click.option("--series", help="Only these series: market:SYMBOL, comma-separated, e.g. um:DOGEUSDT.")
@click.option("--interval", help="Only series of this candle interval.")
@click.option(
    "--sample",
    default=3,
    show_default=True,
    help="Pages and zips per series to compare with the exchange; 0 asks it nothing.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
@click.option(
    "--klines",
    metavar="DIR",
    help="Compare with this folder, served by a replay exchange, instead of Binance.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable.")
@click.pass_obj
def verify(obj: dict[str, Any], /, **options: Any) -> None:
    """Read the lake again, compare a sample with the exchange; exit code 1 when something is wrong."""
    home = start(obj)
    from flows.cli.lake_screen import verify_lake
    from flows.config import parse_assignments

    settings: dict[str, Any] = {"replay": "", **parse_assignments(options.pop("assignments"))}
    if klines := options.pop("klines"):
        settings["replay"] = str(Path(klines).resolve())
    chosen = names(options.pop("series") or "")
    if not verify_lake(home, chosen, settings=settings, **options):
        sys.exit(1)
