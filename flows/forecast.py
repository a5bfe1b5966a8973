"""The next horizon after the newest closed candle, from the model that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from flows.config import ConfigError, RunConfig
from flows.environment import open_home
from flows.forms import RunSettings
from flows.home_access import with_home
from flows.ingest import ingest_series
from flows.judge import champion_pair
from flows.recipes import RecipeName, configure, recipe_of
from flows.run_names import run_name
from kronos_model.hub import MadeFor, made_for
from storage.layout import Home
from storage.registry import Champion, read_champion
from tasks.forecast import complete
from tasks.forecast import forecast as sample
from tasks.policies import within
from tasks.refs import BuiltDataset, ForecastsRef, PairRef
from tasks.reports.prefect_artifacts import show_picture

__all__ = ["forecast", "forecast_series"]


@flow(name="forecast", flow_run_name=run_name)
def forecast(recipe: RecipeName = "demo", settings: RunSettings = None) -> ForecastsRef | State:
    """Ingest what is new, then forecast every series of a recipe with its champion.

    Where a recipe has none, the models that `each` has given its series forecast them. Raises IncompleteForecast where
    a series is stale or has a hole in its lookback; the others are stored.

    Args:
        recipe: Named configuration whose champion forecasts; demo runs offline, `kronos recipes` describes all.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings)
    home = open_home()
    serving = _serving(home, config)
    if not serving:
        message = (
            f"Expected a champion of recipe {recipe} in {home.models}, found none; `kronos run --recipe {recipe}` "
            f"trains, judges and promotes one."
        )
        return Cancelled(name="Skipped", message=message)  # what comes hourly is not worth an alarm
    for one, champion in serving:
        _check_asked(home, one, champion)
    return with_home(home, f"forecast {recipe}", lambda: _forecast(home, config, serving), alone=False)


def _serving(home: Home, config: RunConfig) -> list[tuple[RunConfig, Champion]]:
    """What is forecast by whom: all by the recipe's champion, or else each series by the one of its own, if any."""
    champion = read_champion(home, config.recipe)
    if champion is not None:
        return [(config, champion)]
    own = (replace(config, recipe=recipe_of(config.recipe, one), series=(one,)) for one in config.series)
    return [(one, found) for one in own if (found := read_champion(home, one.recipe)) is not None]


def _check_asked(home: Home, config: RunConfig, champion: Champion) -> None:
    """Refuse another interval, lookback or horizon than the champion was made for, before anything is fetched."""
    made = made_for(home.root / champion.predictor)
    asked = MadeFor(
        interval=config.interval, lookback=config.dataset.lookback, horizon=config.dataset.horizon
    )
    if made is not None and made != asked:
        raise ConfigError(
            f"Expected {_shape(made)}, which the champion of {config.recipe} was made for, found {_shape(asked)}; "
            f"leave the setting out, or train a champion for it with `kronos run --recipe {config.recipe}`."
        )


def _shape(made: MadeFor) -> str:
    return f"interval {made.interval}, dataset.lookback {made.lookback} and dataset.horizon {made.horizon}"


def _forecast(home: Home, config: RunConfig, serving: Sequence[tuple[RunConfig, Champion]]) -> ForecastsRef:
    ingest_series(home, replace(config, series=tuple(name for one, _ in serving for name in one.series)))
    made = [
        forecast_series(home, one, champion_pair(home, champion), dataset=None) for one, champion in serving
    ]
    return complete(
        ForecastsRef(
            forecasts=tuple(forecast for one in made for forecast in one.forecasts),
            failures=tuple(failure for one in made for failure in one.failures),
            seconds=sum(one.seconds for one in made),
        )
    )


def forecast_series(
    home: Home, config: RunConfig, model: PairRef, *, dataset: BuiltDataset | None
) -> ForecastsRef:
    """One stored forecast and one picture per series that can be forecast, over what the model was made for."""
    made = made_for(Path(model.predictor)) or config.dataset
    forecasts = within(sample, config.limits, "forecast_h")(
        home,
        config.keys(),
        model,
        config.forecast,
        lookback=made.lookback,
        horizon=made.horizon,
        dataset=dataset,
        seed=config.seed,
    )
    for one in forecasts.forecasts:
        key = "forecast-" + one.series.replace(":", "-").lower()
        show_picture(Path(one.figure), key, f"Forecast of {one.series} by the {one.model}")
    return forecasts
