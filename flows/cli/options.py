"""Options that several commands have."""

from __future__ import annotations

import click

__all__ = ["END", "INTERVAL", "KLINES", "PORT", "RECIPE", "SERIES", "SET", "START"]

RECIPE = click.option(
    "--recipe", "-r", default="demo", show_default=True, help="Which recipe; `kronos recipes` lists them."
)
SERIES = click.option(
    "--series", help="Other series than the recipe's: market:SYMBOL, comma-separated, e.g. um:DOGEUSDT."
)
INTERVAL = click.option("--interval", help="Another candle interval than the recipe's, e.g. 4h.")
START = click.option("--start", type=click.DateTime(["%Y-%m-%d"]), help="First day to use, UTC.")
END = click.option("--end", type=click.DateTime(["%Y-%m-%d"]), help="First day not to use, UTC.")
KLINES = click.option(
    "--klines",
    metavar="DIR",
    help="Take candles from this folder, served by a replay exchange, instead of Binance.",
)
PORT = click.IntRange(0, 65_535)
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable."
)
