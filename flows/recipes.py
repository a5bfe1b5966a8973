"""Named runs. A recipe is a function that returns a full configuration; CLI and UI override a few of its values.

Any of them also exists for one series alone, with a model of its own: `majors_1h-um-DOGEUSDT` is majors_1h over
um:DOGEUSDT. That name is the recipe's wherever one is kept: champion, MLflow's registered model, repositories.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema

from flows.config import ConfigError, ModelChoice, RunConfig, override
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.jobs import StageConfig
from kronos_model.sampling_config import SamplingConfig
from storage.dataset import DatasetConfig
from storage.errors import StorageError
from storage.schema import SeriesKey

__all__ = ["RECIPES", "IntervalName", "RecipeName", "configure", "recipe", "recipe_of", "series_of"]

IntervalName = Literal[
    "1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"
]


def demo() -> RunConfig:
    """Offline, minutes on two cores: a replay exchange, two symbols, a tiny model from scratch."""
    stage = StageConfig(
        epochs=2,
        steps_per_epoch=100,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.01,
        validation_windows=512,
        checkpoint_steps=100,
    )
    return RunConfig(
        recipe="demo",
        series=("spot:BTCUSDT", "um:DOGEUSDT"),
        replay="synthetic",
        dataset=DatasetConfig(lookback=64, horizon=12),
        model=ModelChoice(preset="tiny", weights="scratch", threads=1),
        tokenizer=stage,
        predictor=replace(stage, epochs=3),
        evaluation=EvaluationConfig(origins=40, samples=16, postprocess_origins=20, sampling_origins=10),
        forecast=SamplingConfig(samples=100),
    )


def doge_1h() -> RunConfig:
    """DOGEUSDT perpetual, 1h since its listing, Kronos-small, 400 + 120 candles."""
    stage = StageConfig(batch_size=32, weight_decay=0.01, clip_norm=3.0, patience=5)
    return RunConfig(
        recipe="doge_1h",
        series=("um:DOGEUSDT",),
        dataset=DatasetConfig(lookback=400, horizon=120),
        model=ModelChoice(preset="small"),
        tokenizer=replace(stage, epochs=5, learning_rate=5e-6),
        predictor=replace(stage, epochs=15, learning_rate=2e-6),
    )


def btc_1h() -> RunConfig:
    """BTCUSDT spot, 1h, Kronos-base, 464 + 48 candles, so that a forecast stays within the model's context of 512."""
    return RunConfig(
        recipe="btc_1h",
        series=("spot:BTCUSDT",),
        dataset=DatasetConfig(lookback=464, horizon=48),
        model=ModelChoice(preset="base"),
        tokenizer=StageConfig(epochs=3, batch_size=32, learning_rate=1e-5, patience=3),
        predictor=StageConfig(epochs=10, batch_size=32, learning_rate=4e-6, patience=3),
    )


def btc_4h() -> RunConfig:
    """BTCUSDT spot, 4h, Kronos-base, 494 + 18 candles (three days ahead)."""
    return replace(btc_1h(), recipe="btc_4h", interval="4h", dataset=DatasetConfig(lookback=494, horizon=18))


def majors_1h() -> RunConfig:
    """One global Kronos-small over eight USD-M majors, 1h, 400 + 48 candles."""
    return RunConfig(
        recipe="majors_1h",
        series=tuple(f"um:{coin}USDT" for coin in ("BTC", "ETH", "BNB", "XRP", "ADA", "DOGE", "LTC", "LINK")),
        dataset=DatasetConfig(lookback=400, horizon=48),
        model=ModelChoice(preset="small"),
        tokenizer=StageConfig(epochs=2, batch_size=32, learning_rate=1e-5, patience=2),
        predictor=StageConfig(epochs=6, batch_size=32, learning_rate=4e-6, patience=3),
    )


def paper_1h() -> RunConfig:
    """The paper's hourly protocol: 80 + 12 candles, prices alone, 10 samples at T 0.6 and top-p 0.9, as drawn."""
    return RunConfig(
        recipe="paper_1h",
        series=("spot:BTCUSDT",),
        dataset=DatasetConfig(lookback=80, horizon=12, prices_only=True),
        model=ModelChoice(preset="small"),
        tokenizer=StageConfig(epochs=2, batch_size=64, learning_rate=1e-5, patience=2),
        predictor=StageConfig(epochs=6, batch_size=64, learning_rate=4e-6, patience=3),
        # Fitted sampling, location, pool and spread would each be another protocol than the paper's (its Table 6).
        evaluation=EvaluationConfig(samples=10, temperature=0.6, top_p=0.9, postprocess=False),
        forecast=SamplingConfig(samples=10, temperature=0.6, top_p=0.9),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function for function in (demo, doge_1h, btc_1h, btc_4h, majors_1h, paper_1h)
}


_OF = "-"  # between a recipe, whose name has none, and the one series it is for; MLflow would not take a dot


def recipe(name: str) -> RunConfig:
    """The recipe of that name, for one series alone where the name says so.

    Raises ConfigError, naming the nearest ones, when there is none.
    """
    base, of, series = name.partition(_OF)
    if base not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        if not near and of:
            near = [f"{one}{of}{series}" for one in difflib.get_close_matches(base, RECIPES, n=1)]
        hint = f"did you mean {near[0]}?" if near else "`kronos recipes` describes them."
        raise ConfigError(f"Expected a recipe among {', '.join(RECIPES)}, found {name!r}; {hint}")
    found = RECIPES[base]()
    return replace(found, recipe=name, series=(_series_of(name, series),)) if of else found


def recipe_of(name: str, series: str) -> str:
    """What recipe `name` is called for one series alone: majors_1h and um:DOGEUSDT are majors_1h-um-DOGEUSDT."""
    return f"{name}{_OF}{series.replace(':', '-')}"


def _series_of(name: str, text: str) -> str:
    try:
        return SeriesKey.parse(text.replace("-", ":", 1), "1h").name
    except StorageError as error:
        raise ConfigError(
            f"Expected a recipe's name or one with a series such as majors_1h-um-DOGEUSDT, found {name!r}: {error}"
        ) from error


def series_of(
    series: Sequence[str] | None, symbols: Sequence[str] | None, top: int | None, market: str
) -> list[str] | None:
    """The series that an ingest was asked for besides its recipe's; None: those, or the `top` of the exchange's.

    Raises ConfigError for more than one of the three.
    """
    if sum(bool(given) for given in (series, symbols, top)) > 1:
        raise ConfigError("Expected one of series, symbols and top, found several; leave the others out.")
    named = [f"{market}:{symbol}" for symbol in symbols] if symbols else series
    return list(named) if named else None


def _known(name: str) -> str:
    recipe(name)
    return name


RecipeName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(RECIPES)})]


def configure(name: str, settings: Mapping[str, Any] | None = None, **chosen: Any) -> RunConfig:
    """A recipe with the values that were chosen (None: as in the recipe), then dotted `settings`, replaced.

    Raises ConfigError for an unknown recipe or setting, or a value that cannot be.
    """
    given = {key: value for key, value in chosen.items() if value is not None}
    config = override(recipe(name), {**given, **(settings or {})})
    base, of, _ = name.partition(_OF)
    if of and config.series != recipe(name).series:
        raise ConfigError(
            f"Expected no series beside {name}, which is for {recipe(name).series[0]} alone, found "
            f"{', '.join(config.series)}; leave them out, or run {base}."
        )
    return config
