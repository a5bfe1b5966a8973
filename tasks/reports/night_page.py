"""One page about a night that needs nothing but itself: no script from elsewhere, no picture file, no font to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.atomic import atomic_path
from tasks.reports.chart_style import COLOURS, Chart, name_of
from tasks.reports.rendering import render

__all__ = ["NightPage", "write_page"]

_COLUMNS: tuple[tuple[str, str, str, str], ...] = (  # key, head, format, what is better
    ("crps_bps", "CRPS", ".1f", "low"),
    ("skill", "skill", "+.3f", "high"),
    ("skill_low", "from", "+.3f", ""),
    ("skill_high", "to", "+.3f", ""),
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


def write_page(page: NightPage, target: Path) -> Path:
    """Write the page, whole or not at all."""
    series = dict.fromkeys(str(row["series"]) for row in page.leaderboard)
    tables = {name: _table([row for row in page.leaderboard if row["series"] == name]) for name in series}
    with atomic_path(target) as draft:
        draft.write_text(render("report.html", page=page, tables=tables, colours=COLOURS), encoding="utf-8")
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
                "model": name_of(row["model"]),
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
