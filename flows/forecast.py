"""The next horizon after the newest closed candle, from the model that serves or, without one, the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from flows.config import ConfigError, RunConfig
from flows.environment import open_home
from flows.forms import RunSettings
from flows.home_access import with_home
from flows.ingest import ingest_series
from flows.judge import champion_pair
from flows.recipes import RecipeName, configure, recipe_of
from flows.recipes import recipe as known
from flows.run_names import run_name
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.hub import MadeFor, made_for
from kronos_model.sampling_config import SamplingConfig
from storage.layout import Home
from storage.registry import Champion, read_champion
from tasks.forecast import complete
from tasks.forecast import forecast as sample
from tasks.policies import within
from tasks.refs import ForecastsRef, PairRef
from tasks.reports.prefect_artifacts import show_picture

__all__ = ["forecast", "forecast_series"]


@flow(name="forecast", flow_run_name=run_name)
def forecast(recipe: RecipeName = "demo", settings: RunSettings = None) -> ForecastsRef | State:
    """Ingest what is new, then forecast every series of a recipe with its champion.

    Where a recipe has none, the models that `each` has given its series forecast them, and the references the series
    for which no network has earned a place yet. Raises IncompleteForecast where a series is stale or has a hole in its
    lookback; the others are stored.

    Args:
        recipe: Named configuration whose champion forecasts; demo runs offline, `kronos recipes` describes all.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings)
    home = open_home()
    serving = _serving(home, config)
    for one, champion in serving:
        if champion is not None:
            _check_asked(home, one, champion)
    return with_home(home, f"forecast {recipe}", lambda: _forecast(home, serving), alone=False)


def _serving(home: Home, config: RunConfig) -> list[tuple[RunConfig, Champion | None]]:
    """What is forecast by whom: all by the recipe's champion, or else each series by the one of its own.

    The references, None, forecast the series for which there is none.
    """
    champion = read_champion(home, config.recipe)
    if champion is not None:
        return [(config, champion)]
    own = [replace(config, recipe=recipe_of(config.recipe, one), series=(one,)) for one in config.series]
    found: list[tuple[RunConfig, Champion | None]] = [(one, read_champion(home, one.recipe)) for one in own]
    left = tuple(name for one, champion in found if champion is None for name in one.series)
    found = [(one, champion) for one, champion in found if champion is not None]
    return [*found, (replace(config, series=left), None)] if left else found


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


def _forecast(home: Home, serving: Sequence[tuple[RunConfig, Champion | None]]) -> ForecastsRef:
    config = serving[0][0]
    ingest_series(home, replace(config, series=tuple(name for one, _ in serving for name in one.series)))
    made = [
        forecast_series(home, one, None if champion is None else champion_pair(home, champion))
        for one, champion in serving
    ]
    return complete(
        ForecastsRef(
            forecasts=tuple(forecast for one in made for forecast in one.forecasts),
            failures=tuple(failure for one in made for failure in one.failures),
            seconds=sum(one.seconds for one in made),
        )
    )


def forecast_series(home: Home, config: RunConfig, model: PairRef | None) -> ForecastsRef:
    """One stored forecast and one picture per series that can be forecast, over what the model was made for.

    Without a model the references forecast.
    """
    made = None if model is None else made_for(Path(model.predictor))
    shape = made or config.dataset
    forecasts = within(sample, config.limits, "forecast_h")(
        home,
        config.keys(),
        model,
        config.forecast,
        lookback=shape.lookback,
        horizon=shape.horizon,
        seed=config.seed,
        as_judged=_as_judged(config),
        as_recipe=_as_recipe(config),
    )
    for one in forecasts.forecasts:
        key = "forecast-" + one.series.replace(":", "-").lower()
        show_picture(Path(one.figure), key, f"Forecast of {one.series} by the {one.model}")
    return forecasts


def _as_judged(config: RunConfig) -> bool:
    """Whether nobody asked for other sampling settings than those that the model was judged with."""
    return _drawn(config.forecast) in (_drawn(config.evaluation), _drawn(SamplingConfig()))


def _as_recipe(config: RunConfig) -> bool:
    """Whether nobody asked for another number of paths or another seed than the recipe's."""
    own = known(config.recipe)
    return (config.forecast.samples, config.seed) == (own.forecast.samples, own.seed)


def _drawn(sampling: SamplingConfig | EvaluationConfig) -> tuple[float, int, float]:
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    return sampling.temperature, sampling.top_k or 0, top_p
