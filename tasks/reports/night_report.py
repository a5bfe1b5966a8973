"""The report of a night: charts of the judgement as PNG, and one HTML page that holds them all.

The page needs nothing but itself: no script from elsewhere, no picture file, no font to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import task

from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.strategy import StrategyConfig
from storage.atomic import atomic_path
from storage.dataset import load_manifest
from storage.evaluations import ForecastTable
from storage.interval import Interval
from storage.lake import Lake
from storage.layout import Home
from storage.schema import SeriesKey, utc_text
from tasks.policies import IDEMPOTENT
from tasks.refs import BuiltDataset, RunRef, ScoresRef, TrainedRef, VerdictRef
from tasks.reports import chart_style as style
from tasks.reports.chart_style import Chart
from tasks.reports.equity_chart import equity_chart
from tasks.reports.fan_charts import fan_chart
from tasks.reports.judgement_charts import (
    coverage_chart,
    leaderboard_chart,
    pit_chart,
    postprocessing_chart,
    reliability_chart,
    skill_chart,
)
from tasks.reports.loss_chart import loss_chart
from tasks.reports.rendering import leaderboard_name, render

__all__ = ["NightPage", "Reported", "report", "summary_markdown", "write_page"]

_COLUMNS: tuple[tuple[str, str, str, str], ...] = (  # key, head, format, what is better
    ("crps_bps", "CRPS", ".1f", "low"),
    ("skill", "skill", "+.3f", "high"),
    ("skill_low", "from", "+.3f", ""),
    ("skill_high", "to", "+.3f", ""),
    ("skill_references", "vs references", "+.3f", "high"),
    ("skill_references_low", "from", "+.3f", ""),
    ("skill_references_high", "to", "+.3f", ""),
    ("mae_bps", "MAE", ".1f", "low"),
    ("rmse_bps", "RMSE", ".1f", "low"),
    ("mase", "MASE", ".3f", "low"),
    ("bias_bps", "bias", "+.1f", "0"),
    ("energy_bps", "energy", ".1f", "low"),
    ("direction", "direction", ".3f", "high"),
    ("brier", "Brier", ".3f", "low"),
    ("ic", "IC", "+.3f", "high"),
    ("rank_ic", "RankIC", "+.3f", "high"),
    ("coverage_50", "cover 50", ".3f", "0.5"),
    ("coverage_80", "cover 80", ".3f", "0.8"),
    ("coverage_90", "cover 90", ".3f", "0.9"),
    ("coverage_95", "cover 95", ".3f", "0.95"),
    ("width_90_bps", "width 90", ".0f", ""),
    ("pit_ks", "PIT KS", ".3f", "low"),
    ("rv_qlike", "QLIKE", ".3f", "low"),
    ("rv_r2", "vol R2", "+.3f", "high"),
    ("violation_rate", "broken bars", ".1%", "low"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """Where the page and its pictures are."""

    page: str
    pictures: Mapping[str, Path]
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NightPage:
    """What the page tells."""

    title: str
    subtitle: str
    verdict: str
    reasons: Sequence[str]
    notes: Sequence[str]
    """What whoever reads the numbers must know, in sentences."""
    facts: Mapping[str, str]
    leaderboard: Sequence[Mapping[str, Any]]
    charts: Sequence[Chart]
    settings: Mapping[str, object]


@task(name="report", task_run_name="report", **IDEMPOTENT)
def report(
    home: Home,
    recipe: str,
    *,
    night: str,
    dataset: BuiltDataset,
    stages: tuple[TrainedRef, ...],
    tokenizer: str,
    scores: ScoresRef,
    verdict: VerdictRef,
    settings: Mapping[str, object],
    run: RunRef,
) -> Reported:
    """Draw every chart of the judgement beside its scores, and write report.html there."""
    folder, loaded = Path(scores.path), Scores.load(Path(scores.path))
    drawn = [
        leaderboard_chart(scores.leaderboard),
        postprocessing_chart(loaded),
        loss_chart({one.stage: Path(one.job) for one in stages}),
        _extremes(home, loaded, verdict.served, folder),
        skill_chart(loaded, verdict.served),
        coverage_chart(loaded, verdict.served),
        pit_chart(loaded, verdict.served),
        reliability_chart(loaded, verdict.served),
        equity_chart(loaded, StrategyConfig()),
    ]
    charts = [one for one in drawn if one is not None]
    pictures = {
        f"{one.name}.png": one.png(folder) for one in charts if one.name != "losses"
    }  # drawn after training
    facts = _facts(dataset, stages, loaded) | {
        "seed": str(settings["seed"]),
        "MLflow run": run.run_id,
        "written by": f"kronos-nightly {version('kronos-nightly')}",
    }
    page = NightPage(
        title=f"{recipe}, night {night}",
        subtitle=f"judged {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        verdict=verdict.verdict,
        reasons=[reason for reason in verdict.reasons if reason.removeprefix("note: ") not in scores.notes],
        notes=(tokenizer, *scores.notes, *dataset.warnings),
        facts=facts,
        leaderboard=scores.leaderboard,
        charts=charts,
        settings=settings,
    )
    return Reported(page=str(write_page(page, folder / "report.html")), pictures=pictures, facts=facts)


def summary_markdown(reported: Reported, verdict: VerdictRef, run: RunRef) -> str:
    """The verdict, what was judged on what, and where the page is."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    facts = "\n".join(f"| {name} | {value} |" for name, value in reported.facts.items())
    place = (
        f"The page with every chart: `{reported.page}`, and `report.html` of the MLflow run `{run.run_id}`."
    )
    return f"## {verdict.verdict}\n\n{reasons}\n\n| | |\n|---|---|\n{facts}\n\n{place}"


def _extremes(home: Home, scores: Scores, served: str, folder: Path) -> Chart:
    lake, interval = Lake(home.lake), Interval(scores.interval)

    def past(name: str, origin_ms: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        start_ms = origin_ms - (count - 1) * scores.interval_ms
        candles = lake.read(SeriesKey.parse(name, interval), start_ms, origin_ms + 1)
        return candles["open_time"].dt.epoch("ms").to_numpy(), candles["close"].to_numpy()

    return fan_chart(scores, served, ForecastTable(folder, "forecasts").read(), past)


def _facts(dataset: BuiltDataset, stages: tuple[TrainedRef, ...], scores: Scores) -> dict[str, str]:
    manifest: dict[str, Any] = load_manifest(dataset.path)
    first = min(one["first_ms"] for one in manifest["series"])
    last = max(one["last_ms"] for one in manifest["series"])
    windows = dataset.windows
    step = manifest["interval_ms"]
    return {
        "series": ", ".join(one["key"] for one in manifest["series"]),
        "candles": f"{sum(one['rows'] for one in manifest['series']):,} of {manifest['interval']}",
        "from": utc_text(first),
        "to": utc_text(last + step),
        "window": f"{manifest['lookback']} candles seen, {manifest['horizon']} forecast",
        "training": f"{windows['train']:,} windows that begin before {utc_text(manifest['validation_from_ms'])}",
        "validation": f"{windows['validation']:,} windows that begin before {utc_text(manifest['test_from_ms'])}",
        "test": f"{windows['test']:,} windows",
        "judged at": f"{len(scores.origin_ms):,} origins from {utc_text(int(scores.origin_ms.min()))}",
        "normaliser": manifest["normaliser"]["kind"],
        "dataset": dataset.digest[:16],
        **{
            f"stage {one.stage}": f"{one.steps:,} steps, validation loss {one.initial_loss:.4f} to {one.best_loss:.4f} "
            f"at step {one.best_step:,}, {one.stopped}"
            for one in stages
        },
    }


def write_page(page: NightPage, target: Path) -> Path:
    """Write the page, whole or not at all."""
    series = dict.fromkeys(str(row["series"]) for row in page.leaderboard)
    tables = {name: _table([row for row in page.leaderboard if row["series"] == name]) for name in series}
    with atomic_path(target) as draft:
        draft.write_text(
            render("report.html", page=page, tables=tables, colours=style.COLOURS), encoding="utf-8"
        )
    return target


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Heads and cells of what any row knows, each cell with whether it is the best of its column."""
    columns = [one for one in _COLUMNS if any(row.get(one[0]) is not None for row in rows)]
    best = {
        key: _best([row[key] for row in rows if row.get(key) is not None], aim) for key, _, _, aim in columns
    }
    return {
        "heads": [head for _, head, _, _ in columns],
        "rows": [
            {
                "model": style.name_of(leaderboard_name(row)),
                "origins": row["origins"],
                "cells": [_cell(row.get(key), shape, best[key]) for key, _, shape, _ in columns],
            }
            for row in rows
        ],
    }


def _cell(value: float | None, shape: str, best: float | None) -> tuple[str, bool]:
    return ("", False) if value is None else (format(value, shape), value == best)


def _best(values: Sequence[float], aim: str) -> float | None:
    """The value nearest to what is best; None where that is not for a table to say."""
    if not aim:
        return None
    if aim in ("low", "high"):
        return min(values) if aim == "low" else max(values)
    return min(values, key=lambda value: abs(value - float(aim)))
