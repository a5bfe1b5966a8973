"""One page about a run that needs nothing but itself: no script from elsewhere, no picture file, no font to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from storage.atomic import atomic_path
from tasks.reports.chart_style import COLOURS, Chart

__all__ = ["RunReport", "write_html"]

_NAMES = {"promote": "good", "keep": "fair", "reject": "poor"}
_COLUMNS: tuple[tuple[str, str, str, str], ...] = (  # key, head, format, what is better
    ("crps_bps", "CRPS", ".1f", "low"),
    ("skill", "skill", "+.3f", "high"),
    ("skill_low", "from", "+.3f", ""),
    ("skill_high", "to", "+.3f", ""),
    ("mae_bps", "MAE", ".1f", "low"),
    ("rmse_bps", "RMSE", ".1f", "low"),
    ("mase", "MASE", ".3f", "low"),
    ("bias_bps", "bias", "+.1f", "zero"),
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
_LEGEND = (
    "CRPS, MAE, RMSE, bias, energy and width in basis points of log return; skill = 1 - CRPS / CRPS of the last value "
    "with its 95 % interval; MASE against the random walk's one-bar error in training; direction, Brier and IC at the "
    "last step; cover: share of closes inside the central interval. The best of a column is bold."
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunReport:
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


def write_html(report: RunReport, target: Path) -> Path:
    """Write the page, whole or not at all."""
    parts = [
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p>"
        '<button type="button" onclick="flip()" aria-label="switch between light and dark">light / dark</button>'
        "</header>",
        _verdict(report),
        _facts(report.facts),
        "<section><h2>Leaderboard, all series</h2>" + _leaderboard(report.leaderboard) + "</section>",
        *(_chart(chart) for chart in report.charts),
        _settings(report.settings),
    ]
    page = _PAGE.format(title=escape(report.title), style=_style(), body="\n".join(parts))
    with atomic_path(target) as draft:
        draft.write_text(page, encoding="utf-8")
    return target


def _verdict(report: RunReport) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    kind = _NAMES.get(report.verdict, "fair")
    chip = f'<h2>The gate says <span class="chip {kind}">{escape(report.verdict)}</span></h2>'
    more = f'<h3>To know</h3><ul class="notes">{notes}</ul>' if notes else ""
    return f"<section>{chip}<ul>{reasons}</ul>{more}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    return f'<section><dl class="facts">{rows}</dl></section>'


def _leaderboard(rows: Sequence[Mapping[str, Any]]) -> str:
    series = list(dict.fromkeys(row["series"] for row in rows))
    parts = [
        _table([row for row in rows if row["series"] == "all"]),
        f"<p class=caption>{escape(_LEGEND)}</p>",
    ]
    for name in series:
        if name != "all":
            table = _table([row for row in rows if row["series"] == name])
            parts.append(f"<details><summary>{escape(name)}</summary>{table}</details>")
    return "".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [one for one in _COLUMNS if any(row.get(one[0]) is not None for row in rows)]
    best = {key: _best([row.get(key) for row in rows], better) for key, _, _, better in columns}
    head = "".join(f'<th scope="col">{escape(label)}</th>' for _, label, _, _ in columns)
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{' class=best' if row.get(key) is not None and row[key] == best[key] else ''}>"
            f"{'' if row.get(key) is None else format(row[key], shape)}</td>"
            for key, _, shape, _ in columns
        )
        name = escape(str(row["model"]).replace("_", " "))
        lines.append(f'<tr><th scope="row">{name}</th><td>{row["origins"]:,}</td>{cells}</tr>')
    head = f'<tr><th scope="col">model</th><th scope="col">origins</th>{head}</tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _best(values: Sequence[float | None], better: str) -> float | None:
    """The value nearest to what is best; None where that is not for a table to say."""
    known = [value for value in values if value is not None]
    if not known or not better:
        return None
    if better in ("low", "high"):
        return min(known) if better == "low" else max(known)
    aim = 0.0 if better == "zero" else float(better)
    return min(known, key=lambda value: abs(value - aim))


def _chart(chart: Chart) -> str:
    return (
        f'<section><h2>{escape(chart.title)}</h2><figure><div class="scroll">{chart.svg()}</div>'
        f"<figcaption class=caption>{escape(chart.caption)}</figcaption></figure></section>"
    )


def _settings(settings: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td class=text>{escape(_value(value))}</td></tr>"
        for name, value in settings.items()
    )
    table = f'<div class="scroll"><table>{rows}</table></div>'
    return f"<section><details><summary>All settings</summary>{table}</details></section>"


def _value(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _style() -> str:
    light, dark = ("".join(f"--{name}:{shades[at]};" for name, shades in COLOURS.items()) for at in (0, 1))
    themes = (
        f":root{{color-scheme:light;{light}--back:#f6f8fa}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}--back:#0b0e13}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}--back:#0b0e13}}"
    )
    return themes + _RULES


_RULES = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:72rem;background:var(--back);color:var(--ink);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
header{display:flex;flex-wrap:wrap;gap:.2rem 1rem;align-items:baseline;margin:.4rem 0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:0 0 .6rem}h3{font-size:.95rem;margin:1rem 0 .3rem}
header p{margin:0;color:var(--muted);flex:1}
button{font:inherit;font-size:.85rem;color:var(--ink);background:var(--paper);border:1px solid var(--grid);
 border-radius:.4rem;padding:.2rem .7rem;cursor:pointer}
section{background:var(--paper);border:1px solid var(--grid);border-radius:.6rem;padding:1rem 1.1rem;margin:0 0 1rem}
ul{margin:0;padding-left:1.2rem}.notes{color:var(--muted)}
.chip{display:inline-block;padding:.05rem .7rem;border-radius:1rem;border:2px solid currentColor}
.good{color:var(--green)}.fair{color:var(--orange)}.poor{color:var(--vermilion)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.7rem 1.2rem;margin:0}
dt{color:var(--muted);font-size:.82rem}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.87rem}
th,td{padding:.28rem .6rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th[scope=row],.text{text-align:left}thead th{color:var(--muted);font-weight:500}
th[scope=row]{position:sticky;left:0;background:var(--paper);font-weight:600}
.best{font-weight:700}.caption{color:var(--muted);font-size:.85rem;margin:.6rem 0 0}

thead th:first-child{text-align:left;padding-left:.6rem}
details{margin-top:.6rem}summary{cursor:pointer}figure{margin:0}
svg{width:100%;min-width:36rem;height:auto;max-height:34rem;display:block}
svg text{font-family:inherit!important}
@media print{button{display:none}section{break-inside:avoid}}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>
function flip() {{
  const page = document.documentElement;
  const dark = page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  page.dataset.theme = dark ? "light" : "dark";
}}
</script>
</head>
<body>
{body}
</body>
</html>
"""
