"""What a flow run is called: flow, recipe, symbols and interval, day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from prefect.runtime import flow_run

from flows.config import ConfigError
from flows.recipes import configure
from storage.errors import StorageError
from storage.schema import SeriesKey

__all__ = ["run_name", "symbols_text"]

_SHOWN = 3  # symbols; of more, only their number


def run_name() -> str:
    """The name of the flow run that is about to begin, such as `nightly doge_1h DOGEUSDT 1h 2026-11-21`.

    The day is the one it was due, UTC. What its parameters have wrong is left out here and told by the flow.
    """
    due: datetime = flow_run.scheduled_start_time
    return f"{flow_run.flow_name} {_subject(flow_run.parameters)} {due:%Y-%m-%d}"


def symbols_text(keys: Sequence[SeriesKey]) -> str:
    """`BTCUSDT`, `BTCUSDT+DOGEUSDT`, or `8 symbols`."""
    symbols = list(dict.fromkeys(key.symbol for key in keys))
    return "+".join(symbols) if len(symbols) <= _SHOWN else f"{len(symbols)} symbols"


def _subject(parameters: Mapping[str, Any]) -> str:
    recipe = str(parameters.get("recipe"))
    markets = parameters.get("symbols") and [f"{parameters['market']}:{one}" for one in parameters["symbols"]]
    chosen = {"series": markets or parameters.get("series"), "interval": parameters.get("interval")}
    if top := parameters.get("top"):
        return f"top {top} {parameters['quote']}"
    try:
        config = configure(recipe, parameters.get("settings"), **chosen)
        return f"{recipe} {symbols_text(config.keys())} {config.interval}"
    except (ConfigError, StorageError):
        return recipe
