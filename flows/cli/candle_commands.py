"""`kronos ingest`, `import`, `export`, `candles` and `verify`. They import what they need when they run."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from flows.cli.options import END, SET, START, Chosen, run_options
from flows.cli.terminal import names, start
from flows.cli.values import WholeNumber, klines_folder

__all__ = ["candles", "export", "import_", "ingest", "verify"]

_ONE_SERIES = click.option("--series", required=True, help="market:SYMBOL, e.g. um:DOGEUSDT.")
_SOME_SERIES = click.option(
    "--series", help="Only these series: market:SYMBOL, comma-separated, e.g. um:DOGEUSDT."
)
_OF_INTERVAL = click.option("--interval", help="Only series of this candle interval.")


@click.command()
@run_options()
@click.option("--symbols", help="Other symbols than the recipe's, comma-separated, e.g. BTCUSDT,ETHUSDT.")
@click.option(
    "--top", type=WholeNumber(1, 500), help="So many symbols, by their traded volume of the last 24 hours."
)
@click.option(
    "--market",
    type=click.Choice(["spot", "um"]),
    default="um",
    show_default=True,
    help="Market of --symbols and --top; um is USD-M futures.",
)
@click.option("--quote", default="USDT", show_default=True, help="Quote asset of --top.")
@click.pass_context
def ingest(
    context: click.Context, /, chosen: Chosen, symbols: str | None, top: int | None, **ranked: str
) -> None:
    """Bring the lake up to date with the exchange: a recipe's series, or others."""
    from flows.recipes import series_of

    listed = names(symbols or "")
    if (listed or top) and context.get_parameter_source("recipe") is not ParameterSource.COMMANDLINE:
        # the demo's market is an invention
        chosen = replace(chosen, assignments=("replay=", *chosen.assignments))
    named = series_of(names(chosen.series or ""), listed, top, ranked["market"])
    chosen.begin(context.obj, series=named)
    from flows.cli.candle_screen import show_ingested
    from flows.ingest import ingest as flow
    from tasks.download import IncompleteIngest

    try:
        show_ingested(chosen.call(context.obj, flow, symbols=listed, top=top, **ranked))
    except IncompleteIngest as error:
        show_ingested(error.ingested)
        raise


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--series", required=True, help="Where it belongs: market:SYMBOL, e.g. um:DOGEUSDT.")
@click.option("--interval", default="1h", show_default=True, help="Its candle interval.")
@click.pass_obj
def import_(obj: dict[str, Any], file: Path, series: str, interval: str) -> None:
    """Validate candles in a CSV, JSON or Parquet FILE and add them to the lake.

    CSV may be a Binance dump (12 columns, with or without header, ms or us) or have a header with timestamp, open,
    high, low, close, volume and perhaps amount.
    """
    from storage.candle_files import read_candles
    from storage.schema import SeriesKey

    key = SeriesKey.parse(series, interval)
    candles = read_candles(file, key.interval)
    home = start(obj)
    from flows.cli.candle_screen import show_series
    from tasks.file_transfer import import_candles

    show_series((import_candles(home, candles, key, origin=file.name),))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_ONE_SERIES
@click.option("--interval", default="1h", show_default=True, help="Candle interval.")
@START
@END
@click.pass_obj
def export(obj: dict[str, Any], /, file: Path, series: str, interval: str, **days: date | None) -> None:
    """Write candles of the lake to FILE (.csv, .json or .parquet)."""
    home = start(obj, reads=True)
    from flows.cli.screen import lines
    from flows.config import day_ms
    from storage.schema import SeriesKey
    from tasks.file_transfer import export_file

    key = SeriesKey.parse(series, interval)
    ends = {f"{name}_ms": day_ms(day) for name, day in days.items()}
    count = export_file(home, file, key, **ends)
    lines().print(f"{count:,} candles of {key} written to {file}")


@click.command()
@_SOME_SERIES
@_OF_INTERVAL
@click.pass_obj
def candles(obj: dict[str, Any], series: str | None, interval: str | None) -> None:
    """Say what the lake has: range, holes and why, freshness, sources, bytes."""
    home = start(obj, reads=True)
    from flows.cli.candle_screen import list_candles

    list_candles(home, names(series or ""), interval)


@click.command()
@_SOME_SERIES
@_OF_INTERVAL
@click.option(
    "--sample",
    type=WholeNumber(min=0),
    default=3,
    show_default=True,
    help="Pages and zips per series to compare with the exchange; 0 asks it nothing.",
)
@click.option("--seed", type=WholeNumber(min=0), default=0, show_default=True, help="Seed of the sample.")
@click.option(
    "--klines",
    type=klines_folder,
    metavar="DIR",
    help="Compare with this folder, served by a replay exchange, instead of Binance.",
)
@SET
@click.pass_obj
def verify(obj: dict[str, Any], /, **options: Any) -> None:
    """Read the lake again, compare a sample with the exchange; exit code 1 when something is wrong.

    The candles are only read. What it asks the exchange is counted in the request budget of the home, where a download
    has made one and it can be written; on a read-only home it counts alone.
    """
    home = start(obj, reads=True)
    from flows.cli.candle_screen import verify_lake
    from flows.config import parse_assignments

    settings: dict[str, Any] = {"replay": "", **parse_assignments(options.pop("assignments"))}
    if klines := options.pop("klines"):
        settings["replay"] = klines
    chosen = names(options.pop("series") or "")
    if not verify_lake(home, chosen, settings=settings, **options):
        sys.exit(1)
