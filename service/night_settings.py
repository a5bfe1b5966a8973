"""What the nights of a recipe were made for: what is served where none of them has brought a champion yet."""

from __future__ import annotations

from pathlib import Path

from kronos_model.hub import MadeFor
from storage.dataset import DatasetConfig, load_manifest
from storage.errors import StorageError
from storage.layout import Home
from storage.registry import read_nights

__all__ = ["NightSettings"]


class NightSettings:
    """Read again when a recipe has a new night. `refresh` belongs to one thread at a time, `of` and `newest` to all."""

    def __init__(self, home: Home, recipes: tuple[str, ...]) -> None:
        self._home = home
        self._recipes = recipes
        self._stamps: dict[str, int] = {}
        self._known: dict[str, MadeFor] = {}

    def refresh(self) -> None:
        """Look whether there is a new night."""
        for folder in sorted(self._home.models.glob("*/nights")):
            recipe, stamp = folder.parent.name, folder.stat().st_mtime_ns
            if (self._recipes and recipe not in self._recipes) or self._stamps.get(recipe) == stamp:
                continue
            self._stamps[recipe] = stamp
            made = _made_for(self._home, recipe)
            if made is not None:
                self._known = {**self._known, recipe: made}

    def of(self, recipe: str) -> MadeFor | None:
        """Interval, lookback and horizon of a recipe's last night; None where that is not known."""
        return self._known.get(recipe)

    def newest(self, interval: str) -> MadeFor:
        """Those of the last night of that interval, or the product's defaults."""
        fitting = {recipe: made for recipe, made in self._known.items() if made.interval == interval}
        if fitting:
            return fitting[max(fitting, key=lambda recipe: self._stamps[recipe])]
        plain = DatasetConfig()
        return MadeFor(interval=interval, lookback=plain.lookback, horizon=plain.horizon)


def _made_for(home: Home, recipe: str) -> MadeFor | None:
    """As the dataset of the last night says it; None where it has been deleted since."""
    found = None
    for night in read_nights(home, recipe):
        path = night.get("dataset", {}).get("path")
        try:
            manifest = load_manifest(Path(path)) if path else None
        except StorageError:  # old datasets are deleted
            continue
        if manifest is not None:
            told = {name: manifest[name] for name in ("interval", "lookback", "horizon")}
            found = MadeFor(**told)
    return found
