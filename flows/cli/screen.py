"""What the terminal shows: tables of a night, of recipes, of the doctor's findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flows.cli.terminal import console
from flows.config import RunConfig, knobs
from flows.site.doctor import CheckResult
from storage.layout import Home
from storage.registry import read_history
from storage.retention import Expired
from tasks.refs import ForecastRef, SeriesRef, TrainedRef

__all__ = [
    "candles_table",
    "show_expired",
    "show_findings",
    "show_forecasts",
    "show_history",
    "show_leaderboard",
    "show_night",
    "show_nights",
    "show_recipe",
    "show_recipes",
    "show_series",
    "show_stages",
]

_MARKS = {"ok": Text("ok", "green"), "note": Text("note", "yellow"), "bad": Text("missing", "red")}


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
        screen.print(Text.assemble(("note:", "yellow"), " ", warning))
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
        screen.print(_forecasts(summary["forecasts"]))
    for one in summary.get("not_forecast", ()):  # a night of an older version has none
        screen.print(Text.assemble(("note:", "yellow"), f" {one['series']} is not forecast: {one['reason']}"))
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
            (scores,) = (
                row for row in one["leaderboard"] if (row["model"], row["series"]) == ("challenger", "all")
            )
            why = "nothing new" if one["nothing_new"] else one["reasons"][0]
            table.add_row(
                ", ".join(each["series"] for each in one["candles"]),
                one["recipe"],
                one["verdict"],
                f"{scores['crps_bps']:.1f}",
                _share(scores["skill"]),
                why,
            )
        screen.print(table)
    _where(screen, home, seconds)


def show_series(series: Sequence[SeriesRef]) -> None:
    """What the lake holds of each series."""
    console().print(candles_table([asdict(one) for one in series]))


def show_stages(stages: Sequence[TrainedRef]) -> None:
    """Losses by stage."""
    console().print(_stages([asdict(one) for one in stages]))


def show_leaderboard(rows: Sequence[Mapping[str, Any]]) -> None:
    """Scores over all series."""
    console().print(_leaderboard(rows))


def show_forecasts(forecasts: Sequence[ForecastRef]) -> None:
    """The last step of each forecast."""
    if forecasts:
        console().print(_forecasts([asdict(one) for one in forecasts]))


def show_history(home: Home, recipe: str) -> None:
    """Who served a recipe, since when and why; the last line serves."""
    table = Table("since (UTC)", "night", "MLflow run", "by", Column("why", overflow="fold"))
    table.title = f"Champions of {recipe}, the last one serves"
    for one in (change.champion for change in read_history(home, recipe)):
        table.add_row(
            one.since[:16].replace("T", " "), one.night, one.mlflow_run[:8], one.by, "; ".join(one.reasons)
        )
    console().print(table)


def show_recipes(recipes: Mapping[str, Callable[[], RunConfig]]) -> None:
    """One line per recipe."""
    table = Table("recipe", "what it is", title="Recipes")
    for name, function in recipes.items():
        table.add_row(name, (function.__doc__ or "").strip().splitlines()[0])
    console().print(table)


def show_recipe(config: RunConfig) -> None:
    """Every setting with its value, type and meaning."""
    table = Table("setting", "value", "type", "meaning", title=f"Recipe {config.recipe}", show_lines=False)
    for knob in knobs(config):
        table.add_row(knob.path, _value(knob.value), knob.kind, " ".join(knob.help.split()))
    console().print(table)
    console().print("Change any of them with --set SETTING=VALUE.")


def show_expired(found: Sequence[Expired], home: Home, *, deleted: bool) -> None:
    """What is, or would be, forgotten, by kind."""
    table = Table(
        "kind", "files and folders", "MB", "oldest, days", title="Deleted" if deleted else "Expired"
    )
    for kind in dict.fromkeys(one.kind for one in found):
        some = [one for one in found if one.kind == kind]
        size = sum(one.size for one in some) / 1e6
        table.add_row(kind, f"{len(some):,}", f"{size:,.1f}", f"{max(one.age_days for one in some):,.0f}")
    screen = console()
    if not found:
        screen.print(f"Nothing in {home.root} is older than it may be.", highlight=False, soft_wrap=True)
        return
    screen.print(table)
    if not deleted:
        screen.print("Nothing was deleted; `kronos gc --yes` does it.")


def show_findings(findings: Sequence[CheckResult]) -> None:
    """What the doctor found."""
    table = Table("", "what", Column("found", overflow="fold"), show_header=False)
    for finding in findings:
        table.add_row(_MARKS[finding.state], finding.what, finding.found)
    console().print(table)


def candles_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What the lake holds of each series after an ingest."""
    table = Table(
        "series", "interval", "candles", "from (UTC)", "to (UTC)", "new", "requests", "holes", title="Candles"
    )
    for row in rows:
        table.add_row(
            row["series"],
            row["interval"],
            f"{row['rows']:,}",
            _time(row["first_ms"]),
            _time(row["last_ms"]),
            f"{row['added']:,}",
            str(row["requests"]),
            str(row["holes"]),
        )
    return table


def _stages(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "stage",
        "steps",
        "loss before",
        "best loss",
        "kept step",
        "ended by",
        title="Validation loss by stage",
    )
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
    columns = (
        "model",
        "origins",
        "MAE bps",
        "RMSE bps",
        "CRPS bps",
        "skill",
        "direction",
        "cover 50",
        "cover 90",
    )
    table = Table(
        *columns, title="Leaderboard, test range, all series (bps of log return; skill against last value)"
    )
    for row in rows:
        if row["series"] == "all":
            table.add_row(
                row["model"],
                str(row["origins"]),
                *(f"{row[name]:.1f}" for name in ("mae_bps", "rmse_bps", "crps_bps")),
                *(_share(row[name]) for name in ("skill", "direction", "coverage_50", "coverage_90")),
            )
    return table


def _forecasts(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "series",
        "after (UTC)",
        "close",
        "until (UTC)",
        "5 to 95 %",
        "P(up)",
        "return",
        "volatility",
        title="Forecast",
    )
    for row in rows:
        table.add_row(
            row["series"],
            _time(row["origin_ms"]),
            _price(row["last_close"]),
            _time(row["horizon_end_ms"]),
            f"{_price(row['close_low'])} to {_price(row['close_high'])}",
            f"{row['probability_up']:.2f}",
            f"{100 * row['expected_return']:+.2f} %",
            f"{100 * row['volatility']:.2f} %",
        )
    return table


def _where(screen: Console, home: Home, seconds: float) -> None:
    here = Path.cwd() / ".kronos" == home.root
    option = "" if here else f"--home {home.root} "
    screen.print(f"Run time {seconds:.0f} s. Everything is in {home.root}", highlight=False, soft_wrap=True)
    screen.print(
        f"  Prefect:  .venv/bin/kronos {option}ui prefect   then http://127.0.0.1:4200",
        highlight=False,
        soft_wrap=True,
    )
    screen.print(
        f"  MLflow:   .venv/bin/kronos {option}ui mlflow    then http://127.0.0.1:5000",
        highlight=False,
        soft_wrap=True,
    )


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, tz=UTC):%Y-%m-%d %H:%M}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _price(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.5g}"
