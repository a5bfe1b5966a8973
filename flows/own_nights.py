"""What a night for every series of a recipe is asked. Needs no Prefect: a mistake is told before a server starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from flows.config import ConfigError, RunConfig
from flows.recipes import configure, recipe_of
from kronos_model.publish_config import repository_names

__all__ = ["SCHEDULER_URL", "own_nights"]

SCHEDULER_URL = r"^(tcp|tls)://\S+:\d+$"  # of Dask, as it tells it itself


def own_nights(
    recipe: str, settings: Mapping[str, Any] | None = None, *, series: list[str] | None = None, **chosen: Any
) -> tuple[RunConfig, tuple[RunConfig, ...], dict[str, Any]]:
    """The recipe as it was chosen, the configuration of every series, and what each of those was asked.

    Raises ConfigError for a recipe of one series, and where two series would publish to one repository.
    """
    config = configure(recipe, settings, series=series, **chosen)
    own = {name: value for name, value in (settings or {}).items() if name != "series"}
    asked: dict[str, Any] = {**chosen, "settings": own or None}
    return config, _nights(config, asked), asked


def _nights(config: RunConfig, asked: Mapping[str, Any]) -> tuple[RunConfig, ...]:
    if len(config.series) == 1 and config.recipe == recipe_of(
        config.recipe.partition("-")[0], config.series[0]
    ):
        raise ConfigError(
            f"Expected a recipe of several series, found {config.recipe}; `kronos run --recipe {config.recipe}` is "
            "its night."
        )
    nights = tuple(configure(recipe_of(config.recipe, series), **asked) for series in config.series)
    names = Counter(
        name
        for one in nights
        for name in repository_names(one.publish, one.recipe, [key.symbol for key in one.keys()])  # noqa: SIM118
    )
    shared, times = names.most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"publish: expected {{recipe}} in tokenizer_name and predictor_name, so that every series has its own "
            f"repositories, found that {times} of them would share {shared!r}; add it."
        )
    return nights
