"""How the champions of a recipe did on what came after their forecasts, and whether the market has drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kronos_model.evaluation.drift import DRIFT_CANDLES, Drift, corrected, measure_drift
from kronos_model.evaluation.stored_scores import score_stored, skill_interval
from kronos_model.served_words import REFERENCES_MODEL
from storage.drift_columns import then_and_now, trained_on
from storage.errors import StorageError
from storage.layout import Home
from storage.registry import read_champion
from storage.scoreboard import Record, Scoreboard, live_record, summed

__all__ = ["DriftOf", "Live", "live_board"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftOf:
    """One quantity of one series, then and now."""

    series: str
    quantity: str
    drift: Drift


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Live:
    """The live record of a recipe: of all who served it, while they did."""

    record: Record
    skill_interval: tuple[float, float] | None
    """Of the skill of all series; None where forecasts are too few for one."""
    drifts: tuple[DriftOf, ...]
    warnings: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """The numbers as MLflow takes them, such as live/skill."""
        names = (
            "scored",
            "waiting",
            "apart",
            "crps_bps",
            "last_value_bps",
            "skill",
            "coverage_50",
            "coverage_90",
        )
        found = {f"live/{name}": getattr(self.record.total, name) for name in names}
        if self.skill_interval is not None:
            found["live/skill_low"], found["live/skill_high"] = self.skill_interval
        for one in self.drifts:
            found[f"drift/{one.series.replace(':', '-')}/{one.quantity}_psi"] = one.drift.psi
        return {name: float(value) for name, value in found.items() if value is not None}


def live_board(home: Home, recipe: str, *, under_way: Mapping[str, Path] | None = None) -> Live:
    """The record of everyone who ever served the recipe, as of now, or else of the references; writes nothing.

    `under_way` gives the datasets of nights that have no summary yet.
    """
    drifts, warnings = _drifts(home, recipe, under_way or {})
    record = live_record(Scoreboard(home, score_stored), recipe, otherwise={REFERENCES_MODEL})
    return Live(record=record, skill_interval=_skill_interval(record), drifts=drifts, warnings=warnings)


def _skill_interval(record: Record) -> tuple[float, float] | None:
    """Over all forecasts of the record."""
    found = summed(record.rows, max((key.interval.next(0) for key in record.series), default=0))
    return None if found is None else skill_interval(*found)


def _drifts(
    home: Home, recipe: str, under_way: Mapping[str, Path]
) -> tuple[tuple[DriftOf, ...], tuple[str, ...]]:
    """Returns and volumes of every series, and a sentence for each that has drifted or could not be measured."""
    champion = read_champion(home, recipe)
    if champion is None:
        return (), ()
    try:
        dataset = under_way.get(champion.night) or trained_on(home, recipe, champion)
        measured = {
            (key.name, quantity): drift
            for key, quantity, then, now in then_and_now(home, dataset, candles=DRIFT_CANDLES)
            if (drift := measure_drift(then, now))
        }
    except StorageError as error:
        return (), (str(error),)
    found = tuple(
        DriftOf(series=series, quantity=quantity, drift=drift)
        for (series, quantity), drift in zip(measured, corrected(list(measured.values())), strict=True)
    )
    return found, tuple(_warning(one, recipe, len(found)) for one in found if one.drift.drifted)


def _warning(one: DriftOf, recipe: str, measured: int) -> str:
    drift = one.drift
    usual = f"where training itself stays below {drift.usual:.2f}, p {drift.p_value:.1g} after Holm over {measured}"
    found = f"PSI {drift.psi:.2f} {usual}, KS {drift.ks:.2f}, spread x {drift.spread:.2f}, level {drift.shift:+.2f}"
    return (
        f"{one.series}: {one.quantity} drifted since the champion was trained ({found}); train on the newer candles "
        f"with `kronos run --recipe {recipe}`, and with a later --start if the old market is gone for good"
    )
