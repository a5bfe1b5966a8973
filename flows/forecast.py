"""The next horizon after the newest closed candle, from the model that serves."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from flows.config import RunConfig
from flows.environment import open_home
from flows.forms import RunSettings
from flows.ingest import ingest_series
from flows.judge import champion_pair
from flows.names import run_name
from flows.recipes import RecipeName, configure
from flows.turns import in_turn
from storage.layout import Home
from storage.registry import Champion, read_champion
from tasks.forecast import complete
from tasks.forecast import forecast as sample
from tasks.policies import within
from tasks.refs import BuiltDataset, ForecastsRef, PairRef
from tasks.report import show_picture

__all__ = ["forecast", "forecast_series"]


@flow(name="forecast", flow_run_name=run_name)
def forecast(recipe: RecipeName = "demo", settings: RunSettings = None) -> ForecastsRef | State:
    """Ingest what is new, then forecast every series of a recipe with its champion.

    Raises IncompleteForecast where a series is stale or has a hole in its lookback; the others are stored.

    Args:
        recipe: Named configuration whose champion forecasts; demo runs offline, `kronos recipes` describes all.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings)
    home = open_home()
    champion = read_champion(home, recipe)
    if champion is None:
        message = (
            f"Expected a champion of recipe {recipe} in {home.models}, found none; `kronos run --recipe {recipe}` "
            f"trains, judges and promotes one."
        )
        return Cancelled(name="Skipped", message=message)  # what comes hourly is not worth an alarm
    return in_turn(home, f"forecast {recipe}", lambda: _forecast(home, config, champion), alone=False)


def _forecast(home: Home, config: RunConfig, champion: Champion) -> ForecastsRef:
    ingest_series(home, config)
    return complete(forecast_series(home, config, champion_pair(home, champion), dataset=None))


def forecast_series(
    home: Home, config: RunConfig, model: PairRef, *, dataset: BuiltDataset | None
) -> ForecastsRef:
    """One stored forecast and one picture per series that can be forecast."""
    forecasts = within(sample, config.limits, "forecast_h")(
        home,
        config.keys(),
        model,
        config.forecast,
        lookback=config.dataset.lookback,
        horizon=config.dataset.horizon,
        dataset=dataset,
        seed=config.seed,
    )
    for one in forecasts.forecasts:
        key = "forecast-" + one.series.replace(":", "-").lower()
        show_picture(Path(one.figure), key, f"Forecast of {one.series} by the {one.model}")
    return forecasts
