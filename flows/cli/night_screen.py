"""What the terminal shows of nights and their parts: stages, leaderboard, forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.screen import candles_table, console, noted, number, time_text
from kronos_model.served_words import BY_REFERENCES, REFERENCES_MODEL
from tasks.reports.rendering import leaderboard_name

if TYPE_CHECKING:
    from storage.layout import Home
    from tasks.refs import ForecastRef, TrainedRef

__all__ = ["show_forecasts", "show_night", "show_nights", "show_ranking", "show_stages"]


_FOR_A_BAND = 19  # paths whose lowest is the 5 % quantile: the r-th of S is at r / (S + 1)
_ONE_PATH = (
    "One path has an end and nothing else: a band, a probability and a volatility take more of them, 19 at least for "
    "5 to 95 % (forecast.samples)."
)
_FEW_PATHS = (
    "{} paths do not reach 5 and 95 %, which takes 19: their lowest and highest are shown (forecast.samples)."
)


def show_night(summary: Mapping[str, Any], home: Home, *, seconds: float) -> None:
    """The whole night, and where to look further."""
    screen = console()
    screen.print(candles_table(summary["candles"]))
    windows = summary["dataset"]["windows"]
    screen.print(
        f"Windows: {windows['train']:,} train, {windows['validation']:,} validation, {windows['test']:,} test "
        f"(dataset {summary['dataset']['digest'][:16]})"
    )
    for warning in summary["warnings"]:
        screen.print(noted(warning))
    screen.print(_stages(summary["stages"]))
    screen.print(_leaderboard(summary["leaderboard"]))
    screen.print(Text.assemble("Gate: ", (summary["verdict"], "bold")))
    for reason in summary["reasons"]:
        screen.print(f"  - {reason}", highlight=False)
    screen.print(f"Report: {summary['report']}", highlight=False, soft_wrap=True)
    for one in summary["published"]:
        place = one["url"] if one["url"] else f"{one['path']} (a folder; nothing was uploaded)"
        screen.print(f"Published {one['name']}: {place}", highlight=False, soft_wrap=True)
    if summary["forecasts"]:
        _print_forecasts(screen, summary["forecasts"])
    for one in summary.get("not_forecast", ()):  # a night of an older version has none
        screen.print(noted(f"{one['series']} is not forecast: {one['reason']}"))
    if summary["nothing_new"]:
        said = "same candles and settings as a finished night; nothing was trained."
        screen.print(Text.assemble(("Nothing new:", "bold"), " ", said))
    _where(screen, home, seconds)


def show_nights(nights: Sequence[Mapping[str, Any]], home: Home, *, seconds: float) -> None:
    """One line for each of several nights, and where to look further."""
    screen = console()
    if nights:
        table = Table("series", "recipe", "gate", "CRPS bps", "skill", "because", title="Nights")
        for one in nights:
            scores = _shown(one["leaderboard"])
            series = ", ".join(each["series"] for each in one["candles"])
            told = f"{scores['crps_bps']:.1f}", number(scores["skill"])
            why = "nothing new" if one["nothing_new"] else one["reasons"][0]
            table.add_row(series, one["recipe"], one["verdict"], *told, why)
        screen.print(table)
    _where(screen, home, seconds)


def _shown(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of what is served, or of the challenger in a night of an older version."""
    pooled = [row for row in rows if row["series"] == "all"]
    return next((row for row in pooled if row.get("served")), None) or next(
        row for row in pooled if row["model"] == "challenger"
    )


def show_stages(stages: Sequence[TrainedRef]) -> None:
    """Losses by stage."""
    console().print(_stages([asdict(one) for one in stages]))


def show_ranking(rows: Sequence[Mapping[str, Any]]) -> None:
    """Scores over all series."""
    console().print(_leaderboard(rows))


def show_forecasts(forecasts: Sequence[ForecastRef]) -> None:
    """The last step of each forecast."""
    if forecasts:
        _print_forecasts(console(), [asdict(one) for one in forecasts])


def _stages(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("stage", "steps", "loss before", "best loss", "kept step", "ended by")
    table.title = "Validation loss by stage"
    for row in rows:
        table.add_row(
            row["stage"],
            f"{row['steps']:,}",
            f"{row['initial_loss']:.4f}",
            f"{row['best_loss']:.4f}",
            f"{row['best_step']:,}",
            row["stopped"] if row["trained"] else f"{row['stopped']} (earlier run)",
        )
    return table


def _leaderboard(rows: Sequence[Mapping[str, Any]]) -> Table:
    errors, shares = ("MAE bps", "RMSE bps", "CRPS bps"), ("direction", "cover 50", "cover 90")
    table = Table("model", "origins", *errors, "skill", "vs references", *shares)
    table.title = (
        "Leaderboard, test range, all series (bps of log return; skill against last value and references)"
    )
    for row in rows:
        if row["series"] == "all":
            table.add_row(
                leaderboard_name(row),
                str(row["origins"]),
                *(f"{row[name]:.1f}" for name in ("mae_bps", "rmse_bps", "crps_bps")),
                *(number(row.get(name)) for name in ("skill", "skill_references")),
                *(number(row[name]) for name in ("direction", "coverage_50", "coverage_90")),
                style="bold" if row.get("served") else "",
            )
    return table


def _print_forecasts(screen: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The forecasts, and which of them no network made."""
    screen.print(_forecasts(rows))
    if few := sorted({row["samples"] for row in rows if 0 < row.get("samples", 0) < _FOR_A_BAND}):
        screen.print(noted(_ONE_PATH if few == [1] else _FEW_PATHS.format(few[0])))
    plain = [row["series"] for row in rows if row["model"] == REFERENCES_MODEL]
    if plain:
        screen.print(f"{', '.join(plain)} {BY_REFERENCES}.", highlight=False)


def _forecasts(rows: Sequence[Mapping[str, Any]]) -> Table:
    end = ("until (UTC)", "5 to 95 %", "P(up)", "return", "volatility")
    table = Table("series", "after (UTC)", "close", *end, title="Forecast")
    for row in rows:
        several = row.get("samples", 0) != 1  # a night of an older version does not say
        table.add_row(
            row["series"],
            time_text(row["origin_ms"]),
            _price(row["last_close"]),
            time_text(row["horizon_end_ms"]),
            f"{_price(row['close_low'])} to {_price(row['close_high'])}" if several else "",
            f"{row['probability_up']:.2f}" if several else "",
            f"{100 * row['expected_return']:+.2f} %",
            f"{100 * row['volatility']:.2f} %" if several else "",
        )
    return table


def _where(screen: Console, home: Home, seconds: float) -> None:
    here = Path.cwd() / ".kronos" == home.root
    option = "" if here else f"--home {home.root} "
    screen.print(f"Run time {seconds:.0f} s. Everything is in {home.root}", highlight=False, soft_wrap=True)
    for name, port in (("Prefect", 4200), ("MLflow", 5000)):
        command = (
            f"{name + ':':<10}.venv/bin/kronos {option}ui {name.lower():<10}then http://127.0.0.1:{port}"
        )
        screen.print(f"  {command}", highlight=False, soft_wrap=True)


def _price(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.5g}"
