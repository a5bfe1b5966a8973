"""`kronos run`, `each`, `finetune`, `evaluate` and `forecast`. They import what they need when they run."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from flows.cli.options import Chosen, run_options
from flows.cli.values import WholeNumber

__all__ = ["each", "evaluate", "finetune", "forecast", "run"]


def _scheduler(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An address of a Dask scheduler, as it tells it itself."""
    if value is None:
        return None
    from flows.own_nights import SCHEDULER_URL

    if not re.search(SCHEDULER_URL, value):
        raise click.BadParameter(f"expected an address such as tcp://10.0.0.1:8786, found {value!r}")
    return value


@click.command()
@run_options()
@click.pass_obj
def run(obj: dict[str, Any], chosen: Chosen) -> None:
    """Run one whole night: download, train, judge, publish, forecast."""
    home = chosen.begin(obj)
    from flows.cli.night_screen import show_night
    from flows.nightly import nightly

    started = time.monotonic()
    summary = chosen.call(obj, nightly)
    show_night(summary, home, seconds=time.monotonic() - started)


@click.command()
@run_options()
@click.option(
    "--workers",
    type=WholeNumber(1, 64),
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
def each(obj: dict[str, Any], chosen: Chosen, workers: int, cluster: str | None) -> None:
    """Give every series of a recipe a model of its own: one ingest for all, then one night each.

    The model of um:DOGEUSDT out of majors_1h is majors_1h-um-DOGEUSDT for every other command.
    """
    from flows.own_nights import own_nights

    own_nights(chosen.recipe, **chosen.parameters())
    home = chosen.begin(obj)
    from flows.cli.night_screen import show_nights
    from flows.each import IncompleteNights
    from flows.each import each as flow

    started, failed = time.monotonic(), None
    try:
        nights = chosen.call(obj, flow, workers=workers, cluster=cluster)
    except IncompleteNights as error:
        nights, failed = error.nights, error
    show_nights(nights, home, seconds=time.monotonic() - started)
    if failed is not None:
        raise failed


@click.command()
@run_options(klines=False)
@click.pass_obj
def finetune(obj: dict[str, Any], chosen: Chosen) -> None:
    """Train both stages on the candles in the lake, without judging."""
    chosen.begin(obj)
    from flows.cli.night_screen import show_stages
    from flows.finetune import finetune as flow

    show_stages(chosen.call(obj, flow).stages)


@click.command()
@run_options(klines=False)
@click.pass_obj
def evaluate(obj: dict[str, Any], chosen: Chosen) -> None:
    """Score the champion, the base and the last value on the newest test range."""
    chosen.begin(obj)
    from flows.cli.night_screen import show_ranking
    from flows.evaluate import evaluate as flow

    show_ranking(chosen.call(obj, flow).leaderboard)


@click.command()
@run_options(series=False)
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    help="Write the forecasts to FILE (.csv, .json or .parquet), too.",
)
@click.pass_obj
def forecast(obj: dict[str, Any], chosen: Chosen, export: Path | None) -> None:
    """Forecast the next horizon of every series with the champion, or without one with the references."""
    from storage.forecast_files import check_export

    if export is not None:
        check_export(export)
    home = chosen.begin(obj)
    from flows.cli.night_screen import show_forecasts
    from flows.cli.screen import lines
    from flows.forecast import forecast as flow
    from tasks.forecast import IncompleteForecast, export_forecasts

    failed = None
    try:
        forecasts = chosen.call(obj, flow).forecasts
    except IncompleteForecast as error:
        forecasts, failed = error.forecasts.forecasts, error
    show_forecasts(forecasts)
    if export is not None and forecasts:
        rows = export_forecasts(home, forecasts, export)
        lines().print(f"{rows:,} rows written to {export}")
    if failed is not None:
        raise failed
