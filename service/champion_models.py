"""The models that serve: the champion of each recipe, loaded again when its record changes.

A request takes what is on the champion_models and keeps it until it is answered, so a change drops nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from kronos_model.errors import ModelError
from kronos_model.forecaster import Forecaster
from kronos_model.hub import made_for, read_metadata
from kronos_model.sampling import SamplingConfig
from service.config import ServiceConfig
from service.errors import Refused
from storage.errors import StorageError
from storage.interval import Interval
from storage.layout import Home
from storage.registry import Champion, read_champion
from storage.schema import SeriesKey

__all__ = ["ChampionModels", "Served"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Stamp = tuple[int, int, int]  # of champion.json: modification time, size, inode


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """A champion, ready to forecast, with what its metadata says that it was trained for."""

    recipe: str
    champion: Champion
    forecaster: Forecaster
    interval: Interval
    lookback: int
    horizon: int
    series: tuple[str, ...]
    loaded_ms: int

    @property
    def digests(self) -> tuple[str, str]:
        """What the model is: tokenizer and predictor."""
        return self.champion.tokenizer_digest, self.champion.predictor_digest

    def sampling(self, config: ServiceConfig) -> SamplingConfig:
        """How its paths are drawn."""
        known = self.forecaster.postprocess
        if known is None or not config.as_judged:
            return config.sampling
        return replace(config.sampling, temperature=known.temperature, top_k=known.top_k, top_p=known.top_p)

    def calibrated(self, config: ServiceConfig) -> bool:
        """Whether the spread of these paths is."""
        known = self.forecaster.postprocess
        return known is not None and known.suits(self.sampling(config))


class ChampionModels:
    """One model per recipe. `refresh` belongs to one thread at a time, `models` and `choose` to all."""

    def __init__(
        self,
        home: Home,
        recipes: tuple[str, ...] = (),
        *,
        loaded: Callable[[str, bool], object] = lambda recipe, good: None,
    ) -> None:
        self._home = home
        self._recipes = recipes
        self._loaded = loaded
        self._stamps: dict[str, _Stamp] = {}
        self._served: dict[str, Served] = {}
        self.problems: dict[str, str] = {}
        """Why a recipe's champion of now does not serve; the one before it does, if there was one."""

    @property
    def models(self) -> tuple[Served, ...]:
        """What serves now, by recipe."""
        served = self._served
        return tuple(served[recipe] for recipe in sorted(served))

    def refresh(self) -> None:
        """Load what is new, forget what is gone; a champion that cannot be loaded leaves the old one."""
        stamps = self._found()
        for recipe in {*self._served, *self.problems} - stamps.keys():
            logger.info("%s: champion.json is gone, and so is its model.", recipe)
            self._served, self.problems = _without(self._served, recipe), _without(self.problems, recipe)
            self._stamps.pop(recipe, None)
        for recipe, stamp in stamps.items():
            if self._stamps.get(recipe) != stamp:
                self._take(recipe)
                self._stamps[recipe] = stamp

    def choose(self, key: SeriesKey, recipe: str | None) -> Served:
        """The model for a series: of that recipe, or the newest trained on it, or on its interval."""
        models = self.models
        fitting = [one for one in models if recipe in (None, one.recipe)]
        if not fitting and recipe is not None:
            known = ", ".join(one.recipe for one in models) or "none yet"
            raise Refused(
                404, f"Expected a recipe with a champion ({known}), found {recipe!r}; name one of them."
            )
        if not fitting:
            none_yet = (
                f"Expected a champion in {self._home.models.name}/, found none yet; `kronos run` trains, judges and "
                "promotes one."
            )
            raise Refused(404, next(iter(self.problems.values()), none_yet))
        same = [one for one in fitting if one.interval == key.interval]
        if not same:
            known = ", ".join(sorted({one.interval.name for one in fitting}))
            raise Refused(
                422,
                f"Expected an interval that a champion was trained for ({known}), found {key.interval}; choose it.",
            )
        return max(same, key=lambda one: (key.name in one.series, one.champion.since))

    def _found(self) -> dict[str, _Stamp]:
        stamps = {}
        for path in sorted(self._home.models.glob("*/champion.json")):
            if self._recipes and path.parent.name not in self._recipes:
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:  # gone since
                continue
            stamps[path.parent.name] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return stamps

    def _take(self, recipe: str) -> None:
        """Put a recipe's champion on the champion_models."""
        try:
            champion = read_champion(self._home, recipe)
            if champion is None:  # deleted in between: the next look sees it
                return
            served = self._load(recipe, champion)
        except (StorageError, ModelError, OSError) as error:
            logger.error("%s: %s", recipe, error)
            self.problems = {**self.problems, recipe: str(error)}
            self._loaded(recipe, False)
            return
        self._served = {**self._served, recipe: served}
        self.problems = _without(self.problems, recipe)
        self._loaded(recipe, True)
        logger.info("%s: the model %s serves.", recipe, champion.predictor_digest)

    def _load(self, recipe: str, champion: Champion) -> Served:
        before = self._served.get(recipe)
        if before is not None and before.digests == (champion.tokenizer_digest, champion.predictor_digest):
            return replace(before, champion=champion)
        predictor = self._home.root / champion.predictor
        made = made_for(predictor)
        if made is None:
            raise ModelError(
                f"Expected kronos_nightly.json in {predictor}, found none; promote a model that a night has trained."
            )
        return Served(
            recipe=recipe,
            champion=champion,
            forecaster=Forecaster.load(self._home.root / champion.tokenizer, predictor),
            interval=Interval(made.interval),
            lookback=made.lookback,
            horizon=made.horizon,
            series=tuple((read_metadata(predictor) or {}).get("training", {}).get("series", ())),
            loaded_ms=time.time_ns() // 1_000_000,
        )


def _without(known: dict[str, T], recipe: str) -> dict[str, T]:
    """Another mapping: who reads the old one keeps it whole."""
    return {name: one for name, one in known.items() if name != recipe}
