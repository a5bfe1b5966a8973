"""The live scoreboard on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import exp
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.cli.screen import console, noted, number
from kronos_model.evaluation.drift import FEWEST_STRETCHES, Drift
from kronos_model.evaluation.intervals import against
from kronos_model.evaluation.stored_scores import SKILL_CONFIDENCE, score_stored
from kronos_model.served_words import REFERENCES_MODEL
from storage.errors import StorageError
from storage.layout import Home
from storage.scoreboard import Scoreboard, Tally, by_period, live_record, score_due
from tasks.live_record import Live, live_board

__all__ = ["show_scores"]

_NO_YARDSTICK = (
    f"There is no yardstick yet where training has fewer than {FEWEST_STRETCHES} stretches as long as the newest "
    "candles: what is usual is not known there, and nothing is called drift."
)

_AS_ASKED = (
    "more forecasts were drawn with another forecast.temperature, top_k or top_p than the champion was judged with: "
    "they are another model's, and in none of these numbers."
)

_NUMBERS = ("scored", "waiting", "CRPS bps", "last value", "skill", "cover 50", "cover 90")


def show_scores(home: Home, recipe: str | None, *, update: bool) -> None:
    """The record of a recipe's champions, or of all recipes that have one; on `update` what is due is kept as well.

    Where there is no champion, that of the references, if they have forecast.
    """
    serving = sorted(path.parent.name for path in home.models.glob("*/champion.json"))
    missing = recipe is not None and recipe not in serving
    if (missing or not serving) and not _references_forecast(home):
        whose = f"a champion of recipe {recipe}" if missing else "a champion"
        remedy = f"`kronos run --recipe {recipe}` trains, judges and promotes one"
        raise StorageError(
            f"Expected {whose} in {home.models}, found none; "
            f"{remedy if missing else '`kronos run` promotes the first one'}."
        )
    if update:
        with home.writing("scoring forecasts"):
            score_due(Scoreboard(home, score_stored))
    for name in [recipe] if recipe else serving or [REFERENCES_MODEL]:
        _show(name, live_board(home, name), champions=name in serving)


def _references_forecast(home: Home) -> bool:
    """Whether a forecast by the references is on record."""
    board = Scoreboard(home, score_stored)
    return bool(live_record(board, REFERENCES_MODEL, otherwise={REFERENCES_MODEL}).series)


def _show(recipe: str, live: Live, *, champions: bool) -> None:
    page = console()
    if not live.record.series:
        page.print(f"Nobody who served {recipe} has forecast yet; `kronos forecast --recipe {recipe}` does.")
    else:
        page.print(_by_series(f"the champions of {recipe}" if champions else "the references", live))
    if live.record.total.scored:
        page.print(_certainty(live))
        if told := _estimated(live.record.total):
            page.print(noted(told))
        page.print(_over_time(live))
    elif live.record.series:
        page.print("Nothing is due yet: a forecast is scored when its whole horizon is in the lake.")
    if live.record.as_asked:
        page.print(noted(f"{live.record.as_asked:,} {_AS_ASKED}"))
    if live.drifts:
        page.print(_drift(live))
        if any(one.drift.usual is None for one in live.drifts):
            page.print(noted(_NO_YARDSTICK))
    for warning in live.warnings:
        page.print(noted(warning))


def _by_series(whose: str, live: Live) -> Table:
    table = Table("series", *_NUMBERS, title=f"Live forecasts of {whose} (bps of log return)")
    for key, one in live.record.series.items():
        table.add_row(str(key), *_cells(one))
    if len(live.record.series) > 1:
        table.add_row("all", *_cells(live.record.total), style="bold")
    return table


def _certainty(live: Live) -> str:
    total = live.record.total
    if live.skill_interval is None:
        return (
            f"{total.scored:,} scored forecasts are too few for an interval of the skill: it takes origins that "
            "span several times two horizons."
        )
    low, high = live.skill_interval
    return (
        f"Skill of all series {total.skill:+.3f}, {SKILL_CONFIDENCE:.0%} interval {low:+.3f} to {high:+.3f} "
        f"(block bootstrap over origins): what was served {against(low, high)} the last value."
    )


def _estimated(total: Tally) -> str | None:
    """Where the CRPS is not the leaderboard's, or not of all that were scored."""
    if total.estimator == "quantiles":
        return (
            "These forecasts are from before paths were kept: their CRPS is that of quantiles, 5 to 8 % higher than "
            "the leaderboard's estimate of the same forecasts."
        )
    if total.apart:
        return (
            f"{total.apart:,} more forecasts, from before paths were kept, are in none of these numbers: their CRPS "
            "is that of quantiles and does not compare."
        )
    return None


def _over_time(live: Live) -> Table:
    table = Table(
        "from (UTC)", *(name for name in _NUMBERS if name != "waiting"), title="Over time, all series"
    )
    for row in by_period(live.record.rows).iter_rows(named=True):
        table.add_row(f"{row['period']:%Y-%m-%d}", f"{row['scored']:,}", *_scores(row))
    return table


def _drift(live: Live) -> Table:
    table = Table("series", "of", "PSI", "usual", "p (Holm)", "KS", "spread", "level", "")
    table.title = "Now against the champion's training"
    for one in live.drifts:
        drift = one.drift
        table.add_row(
            one.series,
            one.quantity,
            *(number(value, 2) for value in (drift.psi, drift.usual, drift.p_value, drift.ks)),
            f"x {drift.spread:.2f}",
            f"x {exp(drift.shift):.2f}" if one.quantity == "volume" else "",
            _found(drift),
        )
    return table


def _found(drift: Drift) -> Text:
    if drift.usual is None:
        return Text("no yardstick yet")
    return Text("drifted", "yellow") if drift.drifted else Text("as usual", "green")


def _cells(one: Tally) -> list[str]:
    return [f"{one.scored:,}", f"{one.waiting:,}", *_scores(asdict(one))]


def _scores(row: Mapping[str, Any]) -> list[str]:
    bps, shares = ("crps_bps", "last_value_bps"), ("skill", "coverage_50", "coverage_90")
    return [number(row[name], 1) for name in bps] + [number(row[name]) for name in shares]
