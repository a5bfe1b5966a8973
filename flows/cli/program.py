"""`kronos`: the whole program from a terminal.

Commands import what they need when they run, so that `kronos --help` answers at once and the environment is
prepared before Prefect and MLflow read it.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from flows.cli.lake_commands import candles, verify
from flows.cli.options import END, INTERVAL, KLINES, PORT, RECIPE, SERIES, SET, START
from flows.cli.registry_commands import promote, rollback, scores
from flows.cli.serve_command import serve
from flows.cli.site_commands import deploy, doctor, gc, ui, up, worker
from flows.cli.terminal import names as _names
from flows.cli.terminal import start as _start

__all__ = ["main"]


def _scheduler(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An address of a Dask scheduler, as it tells it itself."""
    if value is None:
        return None
    from flows.each import SCHEDULER_URL

    if not re.search(SCHEDULER_URL, value):
        raise click.BadParameter(f"expected an address such as tcp://10.0.0.1:8786, found {value!r}")
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="KRONOS_HOME",
    help="Where everything is kept [./.kronos].",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every step.")
@click.version_option(package_name="kronos-nightly")
@click.pass_context
def cli(context: click.Context, home: Path | None, verbose: bool) -> None:
    """Fine-tune Kronos on Binance candles, every night: ingest, train, judge, publish, forecast."""
    context.obj = {"home": home, "verbose": verbose}


@cli.command()
@RECIPE
@SERIES
@INTERVAL
@START
@END
@KLINES
@SET
@click.pass_obj
def run(obj: dict[str, Any], /, **options: Any) -> None:
    """Run one whole night: download, train, judge, publish, forecast."""
    home = _start(obj, flow=True)
    from flows.cli.screen import show_night
    from flows.nightly import nightly

    started = time.monotonic()
    summary = _call(obj, nightly, options)
    show_night(summary, home, seconds=time.monotonic() - started)


@cli.command()
@RECIPE
@SERIES
@INTERVAL
@START
@END
@KLINES
@SET
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Nights at a time, each a process of this machine; more than 1 need the extra dask.",
)
@click.option(
    "--cluster",
    metavar="URL",
    callback=_scheduler,
    help="Run the nights on the workers of this Dask scheduler, e.g. tcp://10.0.0.1:8786; they share the home.",
)
@click.pass_obj
def each(obj: dict[str, Any], /, **options: Any) -> None:
    """Give every series of a recipe a model of its own: one ingest for all, then one night each.

    The model of um:DOGEUSDT out of majors_1h is majors_1h-um-DOGEUSDT for every other command.
    """
    home = _start(obj, flow=True)
    from flows.cli.screen import show_nights
    from flows.each import IncompleteNights
    from flows.each import each as flow

    started, failed = time.monotonic(), None
    try:
        nights = _call(obj, flow, options)
    except IncompleteNights as error:
        nights, failed = error.nights, error
    show_nights(nights, home, seconds=time.monotonic() - started)
    if failed is not None:
        raise failed


@cli.command()
@RECIPE
@SERIES
@INTERVAL
@START
@END
@KLINES
@SET
@click.option("--symbols", help="Other symbols than the recipe's, comma-separated, e.g. BTCUSDT,ETHUSDT.")
@click.option(
    "--top", type=click.IntRange(1, 500), help="So many symbols, by their traded volume of the last 24 hours."
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
def ingest(context: click.Context, /, **options: Any) -> None:
    """Bring the lake up to date with the exchange: a recipe's series, or others."""
    _start(context.obj, flow=True)
    from flows.cli.lake_screen import show_ingested
    from flows.ingest import ingest as flow
    from tasks.download import IncompleteIngest

    options["symbols"] = _names(options["symbols"] or "")
    chosen = options["symbols"] or options["top"]
    if chosen and context.get_parameter_source("recipe") is not ParameterSource.COMMANDLINE:
        options["assignments"] = ("replay=", *options["assignments"])  # the demo's market is an invention
    try:
        show_ingested(_call(context.obj, flow, options))
    except IncompleteIngest as error:
        show_ingested(error.ingested)
        raise


for command in (candles, verify, promote, rollback, scores, serve, deploy, doctor, gc, ui, up, worker):
    cli.add_command(command)


@cli.command()
@RECIPE
@SERIES
@INTERVAL
@START
@END
@SET
@click.pass_obj
def finetune(obj: dict[str, Any], /, **options: Any) -> None:
    """Train both stages on the candles in the lake, without judging."""
    _start(obj, flow=True)
    from flows.cli.screen import show_stages
    from flows.finetune import finetune as flow

    show_stages(_call(obj, flow, options).stages)


@cli.command()
@RECIPE
@SERIES
@INTERVAL
@START
@END
@SET
@click.pass_obj
def evaluate(obj: dict[str, Any], /, **options: Any) -> None:
    """Score the champion, the base and the last value on the newest test range."""
    _start(obj, flow=True)
    from flows.cli.screen import show_leaderboard
    from flows.evaluate import evaluate as flow

    show_leaderboard(_call(obj, flow, options).leaderboard)


@cli.command()
@RECIPE
@KLINES
@SET
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    help="Write the forecasts to FILE (.csv, .json or .parquet), too.",
)
@click.pass_obj
def forecast(obj: dict[str, Any], /, *, export: Path | None, **options: Any) -> None:
    """Forecast the next horizon of every series with the champion."""
    home = _start(obj, flow=True)
    from flows.cli.screen import show_forecasts
    from flows.forecast import forecast as flow
    from storage.forecast_files import check_export
    from tasks.forecast import IncompleteForecast, export_forecasts

    if export is not None:
        check_export(export)
    failed = None
    try:
        forecasts = _call(obj, flow, options).forecasts
    except IncompleteForecast as error:
        forecasts, failed = error.forecasts.forecasts, error
    show_forecasts(forecasts)
    if export is not None and forecasts:
        rows = export_forecasts(home, forecasts, export)
        _screen().print(f"{rows:,} rows written to {export}")
    if failed is not None:
        raise failed


@cli.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--series", required=True, help="Where it belongs: market:SYMBOL, e.g. um:DOGEUSDT.")
@click.option("--interval", default="1h", show_default=True, help="Its candle interval.")
@click.pass_obj
def import_(obj: dict[str, Any], file: Path, series: str, interval: str) -> None:
    """Validate candles in a CSV, JSON or Parquet FILE and add them to the lake.

    CSV may be a Binance dump (12 columns, with or without header, ms or us) or have a header with timestamp, open,
    high, low, close, volume and perhaps amount.
    """
    home = _start(obj)
    from flows.cli.screen import show_series
    from storage.schema import SeriesKey
    from tasks.download import import_file

    show_series((import_file.fn(home, file, SeriesKey.parse(series, interval)),))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--series", required=True, help="market:SYMBOL, e.g. um:DOGEUSDT.")
@click.option("--interval", default="1h", show_default=True, help="Candle interval.")
@START
@END
@click.pass_obj
def export(
    obj: dict[str, Any], file: Path, series: str, interval: str, start: datetime | None, end: datetime | None
) -> None:
    """Write candles of the lake to FILE (.csv, .json or .parquet)."""
    home = _start(obj)
    from flows.config import day_ms
    from storage.schema import SeriesKey
    from tasks.download import export_file

    key = SeriesKey.parse(series, interval)
    start_ms, end_ms = day_ms(start and start.date()), day_ms(end and end.date())
    count = export_file.fn(home, file, key, start_ms=start_ms, end_ms=end_ms)
    _screen().print(f"{count:,} candles of {key} written to {file}")


@cli.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or every setting of recipe NAME with its value and meaning."""
    from flows.cli.screen import show_recipe, show_recipes
    from flows.recipes import RECIPES, recipe

    if name is None:
        show_recipes(RECIPES)
    else:
        show_recipe(recipe(name))


@cli.command()
@click.option(
    "--klines",
    metavar="DIR",
    help="Folder of klines, files named like um_DOGEUSDT_1h.parquet (or csv, json).",
)
@click.option(
    "--series", default="spot:BTCUSDT,um:DOGEUSDT", show_default=True, help="Which series to serve."
)
@click.option("--interval", default="1h", show_default=True, help="Candle interval.")
@click.option("--port", type=PORT, default=8900, show_default=True, help="Port on 127.0.0.1.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Exchange seconds per second; 0 stops the clock.",
)
@click.option(
    "--ahead",
    type=click.IntRange(min=0),
    default=1_000,
    show_default=True,
    help="Candles that are yet to come when the clock starts, half of the data at most; 0 starts it at their end.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the synthetic market.",
)
def replay(
    klines: str | None, series: str, interval: str, port: int, speed: float, ahead: int, seed: int
) -> None:
    """Serve klines the way Binance does, over REST, as a bulk archive and as streams, on 127.0.0.1, until Ctrl-C.

    Without --klines the market is SYNTHETIC: seeded random candles with volatility regimes, a daily rhythm and
    volume that follows volatility. They resemble a market and say nothing about any real one.
    """
    from exchange.replay.source import replay_exchange
    from storage.schema import SeriesKey, utc_text

    keys = [SeriesKey.parse(name, interval) for name in _names(series)]
    server = replay_exchange(klines or "synthetic", keys, seed=seed, port=port, speed=speed, ahead=ahead)
    served = f"{', '.join(map(str, keys))} from {klines or 'a synthetic market'} at {server.url}"
    clock = f"Its clock starts at {utc_text(server.clock.now_ms)} and runs at {speed:g} times real speed"
    urls = f"--set exchange.spot_url={server.url} --set exchange.um_url={server.url}"
    archive = f"--set archive.archive_url={server.url} --set archive.listing_url={server.url}"
    here = server.stream_config
    streams = (
        f"--set stream.spot_stream_url={here.spot_stream_url} --set stream.um_stream_url={here.um_stream_url}"
    )
    _screen().print(f"{served} (Ctrl-C stops it). {clock}. In another terminal:")
    _screen().print(f"kronos run --recipe demo --set replay= {urls} {archive}")
    _screen().print(f"kronos monitor --series {series} --interval {interval} {urls} {streams}")
    server.serve_forever()


@cli.command()
@click.option(
    "--series",
    default="spot:BTCUSDT",
    show_default=True,
    help="What to watch: market:SYMBOL, comma-separated.",
)
@click.option("--interval", default="1m", show_default=True, help="Candle interval.")
@click.option("--backfill", default="24h", show_default=True, help="How far back to fill at the start.")
@click.option(
    "--every", default="60s", show_default=True, help="How often to poll where there is no WebSocket."
)
@click.option("--csv", type=click.Path(path_type=Path), help="Append closed candles to this file.")
@click.option("--json", type=click.Path(path_type=Path), help="Keep the latest state in this file.")
@click.option("--duration", help="Stop after so long, such as 10m [at Ctrl-C].")
@KLINES
@click.option("--speed", default=60.0, show_default=True, help="Exchange seconds per second with --klines.")
@SET
@click.pass_obj
def monitor(obj: dict[str, Any], /, **options: Any) -> None:
    """Keep series of the lake up to date as their candles close, until Ctrl-C.

    --klines synthetic rehearses it without the internet.
    """
    home = _start(obj)
    from flows.cli.monitor_screen import watch
    from flows.config import parse_assignments
    from flows.monitor import watch_config

    settings: dict[str, Any] = {**parse_assignments(options.pop("assignments"))}
    if klines := options.pop("klines"):
        settings["replay"] = klines if klines == "synthetic" else str(Path(klines).resolve())
    config = watch_config(_names(options.pop("series")), settings=settings, **options)
    watch(home, config)


def main() -> None:
    """Entry point: a user's mistake, a full disk or a dead network is one sentence and exit code 1."""
    from flows.failures import explain

    signal.signal(signal.SIGTERM, _stopped)
    try:
        cli.main(prog_name="kronos", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kronos"
        _complain(f"{error.format_message().rstrip('.')}; `{command} --help` says what is possible.")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _stopped(signal.SIGINT)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _complain(sentence)
        sys.exit(1)


def _stopped(number: int, frame: object = None) -> NoReturn:
    """Leave in order also on SIGTERM, whose default would leave the embedded Prefect server behind."""
    Console(stderr=True).print("Stopped; the same command resumes where it was.")
    sys.exit(128 + number)


def _complain(sentence: str) -> None:
    """One line on stderr, word for word."""
    line = Text.assemble(("error:", "bold red"), " ", " ".join(sentence.split()))
    Console(stderr=True, soft_wrap=True).print(line)


def _screen() -> Console:
    """Long lines stay whole, to be copied; brackets and colons are no markup."""
    return Console(soft_wrap=True, markup=False, emoji=False)


def _call(obj: dict[str, Any], flow: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call a flow with what was given on the command line; a typing mistake is told before anything starts."""
    from flows.config import parse_assignments
    from flows.recipes import configure

    settings: dict[str, Any] = {**parse_assignments(options.pop("assignments"))}
    if klines := options.pop("klines", None):
        settings["replay"] = str(Path(klines).resolve())
    if options.get("series"):
        options["series"] = _names(options["series"])
    for name in ("start", "end"):
        if options.get(name):
            options[name] = options[name].date()
    parameters = {name: value for name, value in options.items() if value is not None}
    if settings:
        parameters["settings"] = settings
    asked = ("series", "interval", "start", "end", "settings")
    configure(options["recipe"], **{name: value for name, value in parameters.items() if name in asked})
    del parameters["recipe"]
    if server := obj["server"]:
        server.wait_until_healthy(threading.Event())
    return flow(options["recipe"], **parameters)
