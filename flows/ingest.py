"""Bring the lake up to date."""

from __future__ import annotations

from datetime import date
from typing import Any

from prefect import flow

from flows.config import RunConfig
from flows.environment import open_home
from flows.recipes import IntervalName, RecipeName, configure
from storage.layout import Home
from tasks.download import connected, download
from tasks.refs import SeriesRef
from tasks.report import show_candles

__all__ = ["ingest", "ingest_series"]


@flow(name="ingest", flow_run_name="ingest {recipe}")
def ingest(
    recipe: RecipeName = "demo",
    series: list[str] | None = None,
    interval: IntervalName | None = None,
    start: date | None = None,
    end: date | None = None,
    settings: dict[str, Any] | None = None,
) -> tuple[SeriesRef, ...]:
    """Download the closed candles of a recipe that the lake does not have yet.

    Args:
        recipe: Named configuration whose series to update; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. None: the recipe's, or else since the listing.
        end: First day not to use, UTC. None: the recipe's, or else up to the newest closed candle.
        settings: Other settings by dotted name, such as {"exchange.timeout_s": 30}; `kronos recipes NAME` lists them.
    """
    config = configure(recipe, settings, series=series, interval=interval, start=start, end=end)
    return ingest_series(open_home(), config)


def ingest_series(home: Home, config: RunConfig) -> tuple[SeriesRef, ...]:
    """Every series of `config`, one after the other, from one exchange."""
    keys = config.keys()
    with connected(config.replay, keys, config.exchange, config.seed) as exchange:
        series = tuple(
            download(home, key, exchange, start_ms=config.start_ms(), end_ms=config.end_ms()) for key in keys
        )
    show_candles(series)
    return series
