"""Pictures of a judgement: skill, coverage and calibration of the models that were walked forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kronos_model.evaluation.diagnostics import coverage_by_step, pit_histogram, reliability, skill_by_step
from kronos_model.evaluation.intervals import Resampler
from kronos_model.evaluation.leaderboard import CONFIDENCE
from kronos_model.evaluation.scores import LEVELS, REFERENCES_POOL, Scores
from tasks.reports import chart_style as style
from tasks.reports.chart_style import Chart, Floats
from tasks.reports.rendering import leaderboard_name

__all__ = [
    "coverage_chart",
    "leaderboard_chart",
    "pit_chart",
    "postprocessing_chart",
    "reliability_chart",
    "skill_chart",
]

_REFERENCE = "last_value"
_STAGES = {
    "raw": "as the network draws",
    "location": "location shrunk",
    "blend": "pooled with the references",
    "spread": "spread scaled",
}
_BINS = 20


def leaderboard_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """CRPS skill of every model over all series, with its interval."""
    chosen = [row for row in rows if row["series"] == "all" and row["skill"] is not None][::-1]
    models = [str(row["model"]) for row in chosen]
    figure, (axis,) = style.canvas(1, height=1.2 + 0.42 * len(chosen))
    _draw_skills(axis, chosen, [style.colour_of(models, model) for model in models])
    axis.set_yticks(range(len(chosen)), [style.name_of(leaderboard_name(row)) for row in chosen])
    axis.set(xlabel="CRPS skill: 1 - CRPS / CRPS of the last value")
    return Chart(
        "leaderboard",
        "Skill against saying that the price stays",
        "A bar wholly right of zero is better than the last value, one across zero cannot be told from it; 1 would be "
        "perfect. Bars are 95 % intervals by a block bootstrap over time, which respects that forecasts "
        "overlap. An arrow at the edge is a model far to the left of it.",
        figure,
    )


def postprocessing_chart(scores: Scores) -> Chart | None:
    """What each step of the challenger's post-processing gave on the test range; none without any."""
    reference = scores.crps[scores.index(REFERENCES_POOL)].mean(axis=1)  # (N,)
    if not scores.stages or not reference.any():
        return None
    resampler = Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=CONFIDENCE, draws=1000)
    rows = []
    for losses in scores.stage_crps.mean(axis=2)[::-1]:
        low, high = resampler.skill(losses, reference, CONFIDENCE)
        ends = {"skill_low": float(low), "skill_high": float(high)} if np.isfinite([low, high]).all() else {}
        rows.append({"skill": float(1 - losses.mean() / reference.mean()), **ends})
    figure, (axis,) = style.canvas(1, height=1.2 + 0.42 * len(rows))
    _draw_skills(axis, rows, [style.BLUE] * len(rows))
    axis.set_yticks(range(len(rows)), [_STAGES[name] for name in scores.stages[::-1]])
    axis.set(xlabel="CRPS skill: 1 - CRPS / CRPS of the references alone")
    return Chart(
        "postprocessing",
        "What each step of post-processing gave",
        "The challenger on the test range, from what the network draws to what would be served. Zero is the pool of "
        "references without any network: a bar wholly right of it adds something to them. A step that was left out "
        "changes nothing. Bars are 95 % intervals; an arrow at the edge is far to the left of it.",
        figure,
    )


def _draw_skills(axis: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> None:
    """One line for each skill with its interval, from the bottom up; far to the left an arrow."""
    left, right = _skill_frame(rows)
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        skill = row["skill"]
        if row.get("skill_low") is not None and row.get("skill_high") is not None:
            ends = [row["skill_low"], row["skill_high"]]
            axis.plot(ends, [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        if skill >= left:
            axis.plot(skill, place, "o", color=colour, markersize=7)
            style.note(axis, f"{skill:+.3f}", (skill, place))
        else:
            axis.plot(left, place, "<", color=colour, markersize=9, clip_on=False)
            style.note(axis, f"{skill:+.3f}", (left, place), offset=(9, -3), ha="left")
    axis.axvline(0, color=style.MUTED, linewidth=1)
    axis.set_xlim(left, right)
    axis.set_ylim(-0.6, len(rows) - 0.2)


def _skill_frame(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From where to where the skills are drawn: whole, but for a few far below all others, which would squeeze them."""
    skills = np.array([row["skill"] for row in rows])
    reach = max(0.05, 4 * float(np.median(np.abs(skills))), float(skills.max()))
    near = [row for row in rows if row["skill"] >= -reach]
    ends = [
        row[key] for row in near for key in ("skill", "skill_low", "skill_high") if row.get(key) is not None
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.08 * max(high - low, 0.01)
    return low - room, high + room


def skill_chart(scores: Scores, served: str) -> Chart:
    """Skill by step, that of what is served with its interval."""
    figure, (axis,) = style.canvas(1)
    steps = np.arange(1, scores.horizon + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = skill_by_step(scores, served, reference=_REFERENCE)
        axis.fill_between(
            steps,
            found.low,
            found.high,
            color=style.colour_of(scores.models, served),
            alpha=0.15,
            linewidth=0,
            label="95 % interval",
        )
        labels = style.served_and_contenders(scores, served)
        base = scores.crps[scores.index(_REFERENCE)].mean(axis=0)
        for name in dict.fromkeys((*labels, *scores.models)):
            if name != _REFERENCE:
                skill = 1 - scores.crps[scores.index(name)].mean(axis=0) / base
                width = 2.6 if name == served else 2.0 if name == style.CHALLENGER else 1.2
                label = labels.get(name, style.name_of(name))
                line: Any = {"color": style.colour_of(scores.models, name), "label": label}
                axis.plot(
                    steps, skill, linewidth=width, linestyle=style.dashes_of(scores.models, name), **line
                )
    axis.axhline(0, color=style.MUTED, linewidth=1)
    axis.set_ylabel("CRPS skill against the last value")
    _step_axis(axis, scores)
    _limit(axis, [found.low, found.high])
    style.legend(figure, [axis])
    return Chart(
        "skill",
        "Skill by step",
        "1 - CRPS / CRPS of the last value at each step; the band is the 95 % interval of what is served "
        f"({style.name_of(served)}). Where all of it is above zero, that is better than saying that the price stays. "
        "Curves far below the band are cut off.",
        figure,
    )


def _limit(axis: Axes, bounds: Sequence[Floats]) -> None:
    """Show the band whole, with half its height above and below, and no more of curves far off."""
    values = np.concatenate([*bounds, [0.0]])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    room = 0.5 * max(high - low, 0.02)
    axis.set_ylim(low - room, high + room)


def coverage_chart(scores: Scores, served: str) -> Chart:
    """Share of closes inside the central intervals of what is served, by step."""
    figure, (axis,) = style.canvas(1)
    steps = np.arange(1, scores.horizon + 1)
    for share, colour in zip(LEVELS, (style.GREEN, style.ORANGE, style.BLUE, style.PURPLE), strict=True):
        axis.axhline(share, color=colour, linestyle="--", linewidth=0.9, alpha=0.8)
        covered = coverage_by_step(scores, served, share)
        axis.plot(steps, covered, color=colour, marker="o", markersize=3, label=f"{share:.0%} interval")
    axis.set(ylabel="share of closes inside", ylim=(0, 1.02))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    _step_axis(axis, scores)
    style.legend(figure, [axis])
    return Chart(
        "coverage",
        "Coverage by step",
        f"How many closes the central intervals of what is served ({style.name_of(served)}) hold. The dashed line of "
        "the same colour is where the curve belongs; below it the fan is too narrow.",
        figure,
    )


def _step_axis(axis: Axes, scores: Scores) -> None:
    axis.set_xlabel(f"step ({scores.interval} candles ahead)")
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))


def pit_chart(scores: Scores, served: str) -> Chart:
    """Where the truth fell within the forecast distribution, of what is served as bars."""
    figure, (axis,) = style.canvas(1)
    edges = np.linspace(0, 1, _BINS + 1)
    labels = style.served_and_contenders(scores, served)
    shares = {name: pit_histogram(scores, name, bins=_BINS) for name in labels}
    for name, density in shares.items():
        colour, label = style.colour_of(scores.models, name), labels[name]
        if name == served:
            bars: Any = {"width": 1 / _BINS, "align": "edge", "edgecolor": style.PAPER, "alpha": 0.45}
            axis.bar(edges[:-1], density, color=colour, label=label, **bars)
        else:
            axis.stairs(density, edges, color=colour, linewidth=1.4, label=label)
    axis.axhline(1, color=style.MUTED, linestyle="--", linewidth=1, label="calibrated")
    serving = [float(density.max()) for name, density in shares.items() if name != "base"]
    axis.set(xlabel="PIT: share of the forecast below what came", ylabel="density", xlim=(0, 1))
    axis.set_ylim(0, max(2.0, 1.15 * max(serving)))
    style.legend(figure, [axis])
    return Chart(
        "pit",
        "Calibration: PIT histogram",
        "Flat at 1 is calibrated. A U says that the fan is too narrow, a hump that it is too wide, a slope that it is "
        f"biased up or down. Bars are what is served ({style.name_of(served)}), lines the networks alone. All steps "
        "and series; what rises beyond the frame is cut off.",
        figure,
    )


def reliability_chart(scores: Scores, served: str) -> Chart:
    """Stated against observed probability of a higher close at the last step, of what is served in numbers."""
    figure, (axis,) = style.canvas(1, width=6.4, height=5.2)
    axis.plot([0, 1], [0, 1], color=style.MUTED, linestyle="--", linewidth=1, label="reliable")
    for name, label in style.served_and_contenders(scores, served).items():
        found, colour = reliability(scores, name), style.colour_of(scores.models, name)
        seen = found.count > 0
        stated, observed, count = found.stated[seen], found.observed[seen], found.count[seen]
        axis.plot(stated, observed, color=colour, linewidth=1.2, alpha=0.8)
        sizes = 12 + 180 * count / count.sum()
        axis.scatter(stated, observed, s=sizes, color=colour, label=label, zorder=3)
        if name == served:
            for x, y, times in zip(stated, observed, count, strict=True):
                style.note(axis, f"{times}", (x, y), offset=(7, -9), ha="left")
    axis.set(xlabel="stated P(up) over the whole horizon", ylabel="share that rose")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    style.legend(figure, [axis])
    return Chart(
        "reliability",
        "Reliability of P(up)",
        "How often the close at the last step was higher, where the model said so with about this probability. On the "
        f"diagonal is reliable. Numbers count the forecasts as served ({style.name_of(served)}), sizes those of each; "
        "few say little.",
        figure,
    )
