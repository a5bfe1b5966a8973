"""Bring the lake up to date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State

from exchange.connect import connected
from flows.config import RunConfig
from flows.environment import open_home
from flows.forms import Count, RunSettings, SeriesName, Unchanged
from flows.home_access import with_home
from flows.recipes import IntervalName, RecipeName, configure, series_of
from flows.run_names import run_name
from storage.layout import Home
from storage.schema import SeriesKey
from tasks.download import IncompleteIngest, download_all
from tasks.refs import FailureRef, IngestRef
from tasks.reports.ingest_report import report_ingest
from tasks.reports.prefect_artifacts import show_ingest

__all__ = ["ingest", "ingest_series"]


@flow(name="ingest", flow_run_name=run_name)
def ingest(
    recipe: RecipeName = "demo",
    series: list[SeriesName] | Unchanged = None,
    interval: IntervalName | Unchanged = None,
    start: date | Unchanged = None,
    end: date | Unchanged = None,
    settings: RunSettings = None,
    symbols: list[str] | Unchanged = None,
    market: Literal["spot", "um"] = "um",
    top: Count | Unchanged = None,
    quote: str = "USDT",
) -> IngestRef | State:
    """Download the closed candles of a recipe, or of other series, that the lake does not have yet.

    Args:
        recipe: Named configuration whose series to update; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. Unchanged: the recipe's, or else since the listing.
        end: First day not to use, UTC. Unchanged: the recipe's, or else up to the newest closed candle.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
        symbols: Other symbols than the recipe's, all of one market, such as BTCUSDT.
        market: The market of `symbols` and `top`: spot, or um for USD-M futures.
        top: So many symbols, by their traded volume of the last 24 hours.
        quote: The quote asset of `top`.
    """
    named = series_of(series, symbols, top, market)
    config = configure(recipe, settings, series=named, interval=interval, start=start, end=end)
    ranked = (market, top, quote.upper()) if top else None
    home = open_home()
    return with_home(
        home,
        f"ingest {recipe}",
        lambda: ingest_series(home, config, ranked=ranked, whole_folder=bool(symbols or top)),
        alone=False,
    )


def ingest_series(
    home: Home,
    config: RunConfig,
    *,
    ranked: tuple[Literal["spot", "um"], int, str] | None = None,
    whole_folder: bool = False,
) -> IngestRef:
    """Every series of `config`, or those that `ranked` asks for, from one exchange; a replay of a folder serves
    these alone, or the whole folder.

    Raises IncompleteIngest, after the others are done, where some series failed; the first one's error where all did.
    """
    keys = config.keys()
    places = (config.exchange, config.archive)
    with (
        home.writing("ingest"),
        connected(
            home.lake, config.replay, keys, *places, seed=config.seed, whole_folder=whole_folder
        ) as exchange,
    ):
        if ranked is not None:
            keys = exchange.top(*ranked, keys[0].interval)
        done, failed = download_all(home, keys, exchange, start_ms=config.start_ms(), end_ms=config.end_ms())
    failures = tuple(FailureRef(series=str(key), reason=str(error)) for key, error in failed)
    ingested = report_ingest(home, done, failures)
    show_ingest(ingested)
    if failed and len(failed) == len(keys):
        raise failed[0][1]
    if failed:
        raise IncompleteIngest(_failure(keys, failures), ingested)
    return ingested


def _failure(keys: Sequence[SeriesKey], failures: Sequence[FailureRef]) -> str:
    reasons = " | ".join(f"{one.series}: {one.reason}" for one in failures)
    return f"{len(failures)} of {len(keys)} series failed, the others are up to date and stored: {reasons}"
