"""The models that serve: the champion of each recipe, loaded again when its record changes, and else the references.

A request takes what is on the champion_models and keeps it until it is answered, so a change drops nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from kronos_model.errors import ModelError
from kronos_model.forecaster import Forecaster
from kronos_model.hub import made_for, read_metadata
from kronos_model.sampling import SamplingConfig
from kronos_model.served import Served
from kronos_model.served_words import BY_REFERENCES, REFERENCES_MODEL, adds
from service.config import ServiceConfig
from service.errors import Refused
from service.night_settings import NightSettings
from storage.errors import StorageError
from storage.interval import Interval
from storage.layout import Home
from storage.registry import Champion, read_champion
from storage.schema import SeriesKey

__all__ = ["ChampionModel", "ChampionModels", "Serving"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Stamp = tuple[int, int, int]  # of champion.json: modification time, size, inode


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Serving:
    """What forecasts a series, ready, and what it was made for: a champion, or the references."""

    served: Served
    recipe: str | None
    """Whose champion, or for whom the references serve; None: for whatever the lake has."""
    interval: Interval
    lookback: int
    horizon: int
    series: tuple[str, ...] = ()
    """What it was trained on."""

    @property
    def model(self) -> Literal["champion", "references"]:
        """Who it is."""
        return "references"

    @property
    def digests(self) -> tuple[str, str]:
        """What the model is: tokenizer and predictor."""
        return "", REFERENCES_MODEL

    @property
    def adds(self) -> str:
        """What a network adds to the references, in a sentence."""
        return BY_REFERENCES

    def sampling(self, config: ServiceConfig) -> SamplingConfig:
        """How its paths are drawn."""
        return self.served.as_judged(config.sampling) if config.as_judged else config.sampling


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChampionModel(Serving):
    """A champion, with what its metadata says that it was trained for."""

    recipe: str
    champion: Champion
    normaliser: str
    loaded_ms: int

    @property
    def model(self) -> Literal["champion", "references"]:
        return "champion"

    @property
    def digests(self) -> tuple[str, str]:
        return self.champion.tokenizer_digest, self.champion.predictor_digest

    @property
    def adds(self) -> str:
        return adds(self.served.weights, self.champion.reasons)


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
        self._served: dict[str, ChampionModel] = {}
        self._nights = NightSettings(home, recipes)
        self.problems: dict[str, str] = {}
        """Why a recipe's champion of now does not serve; the one before it does, if there was one."""

    @property
    def models(self) -> tuple[ChampionModel, ...]:
        """What serves now, by recipe."""
        served = self._served
        return tuple(served[recipe] for recipe in sorted(served))

    def refresh(self) -> None:
        """Load what is new, forget what is gone; a champion that cannot be loaded leaves the old one."""
        self._nights.refresh()
        stamps = self._found()
        for recipe in {*self._served, *self.problems} - stamps.keys():
            logger.info("%s: champion.json is gone, and so is its model.", recipe)
            self._served, self.problems = _without(self._served, recipe), _without(self.problems, recipe)
            self._stamps.pop(recipe, None)
        for recipe, stamp in stamps.items():
            if self._stamps.get(recipe) != stamp:
                self._take(recipe)
                self._stamps[recipe] = stamp

    def choose(self, key: SeriesKey, recipe: str | None) -> Serving:
        """What forecasts a series: the champion of that recipe, or the newest trained on it, or on its interval.

        The references, where there is none. Raises Refused where a recipe that is named is for another interval, is
        not known, or has a champion that cannot be loaded.
        """
        known = [one for one in self.models if recipe in (None, one.recipe)]
        fitting = [one for one in known if one.interval == key.interval]
        if fitting:
            return max(fitting, key=lambda one: (key.name in one.series, one.champion.since))
        if recipe is not None and known:
            raise _other_interval(known[0].interval.name, key)
        broken = {name: why for name, why in self.problems.items() if name not in self._served}
        if recipe in broken or (recipe is None and broken):
            raise Refused(404, broken[recipe] if recipe else next(iter(broken.values())))
        return self._by_references(key, recipe)

    def offered(self, key: SeriesKey) -> Serving | None:
        """What forecasts a series that is asked for without a recipe; None where that is refused."""
        try:
            return self.choose(key, None)
        except Refused:
            return None

    def _by_references(self, key: SeriesKey, recipe: str | None) -> Serving:
        made = self._nights.newest(key.interval.name) if recipe is None else self._nights.of(recipe)
        if made is None:
            known = ", ".join(one.recipe for one in self.models) or "none yet"
            raise Refused(
                404,
                f"Expected a recipe with a champion ({known}) or with a finished night, found {recipe!r}; name "
                "another, or leave it out.",
            )
        if made.interval != key.interval.name:
            raise _other_interval(made.interval, key)
        return Serving(
            served=Served.references(made.lookback),
            recipe=recipe,
            interval=key.interval,
            lookback=made.lookback,
            horizon=made.horizon,
        )

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

    def _load(self, recipe: str, champion: Champion) -> ChampionModel:
        before = self._served.get(recipe)
        if before is not None and before.digests == (champion.tokenizer_digest, champion.predictor_digest):
            return replace(before, champion=champion)
        predictor = self._home.root / champion.predictor
        made = made_for(predictor)
        if made is None:
            raise ModelError(
                f"Expected kronos_nightly.json in {predictor}, found none; promote a model that a night has trained."
            )
        forecaster = Forecaster.load(self._home.root / champion.tokenizer, predictor)
        return ChampionModel(
            recipe=recipe,
            champion=champion,
            served=Served.of(forecaster, name="champion"),
            normaliser=forecaster.normaliser.kind,
            interval=Interval(made.interval),
            lookback=made.lookback,
            horizon=made.horizon,
            series=tuple((read_metadata(predictor) or {}).get("training", {}).get("series", ())),
            loaded_ms=time.time_ns() // 1_000_000,
        )


def _other_interval(made: str, key: SeriesKey) -> Refused:
    return Refused(
        422,
        f"Expected the interval that the recipe was made for ({made}), found {key.interval}; choose it, or leave the "
        "recipe out.",
    )


def _without(known: dict[str, T], recipe: str) -> dict[str, T]:
    """Another mapping: who reads the old one keeps it whole."""
    return {name: one for name, one in known.items() if name != recipe}
