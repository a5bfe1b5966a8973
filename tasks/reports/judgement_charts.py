"""Pictures of a training and of a judgement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from kronos_model.evaluation.diagnostics import coverage_by_step, pit_histogram, reliability, skill_by_step
from kronos_model.evaluation.scores import LEVELS, Scores
from tasks.reports.chart_style import (
    BLUE,
    GREEN,
    INK,
    MODELS,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RAW,
    VERMILION,
    Chart,
    Floats,
    canvas,
    colour_of,
    dashes_of,
    legend,
    name_of,
)

__all__ = [
    "coverage_chart",
    "leaderboard_chart",
    "loss_chart",
    "pit_chart",
    "reliability_chart",
    "skill_chart",
]

_MOST_POINTS = 600  # of a training curve: more cannot be seen
_MOST_LABELS = 12


def loss_chart(jobs: Mapping[str, Path]) -> Chart:
    """Training and validation loss per stage; the kept weights and what lies beyond them are marked."""
    figure, axes = canvas(len(jobs))
    for axis, (stage, job) in zip(axes, jobs.items(), strict=True):
        records = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        train = np.array([(r["step"], r["loss"]) for r in records if r["phase"] == "train"]).reshape(-1, 2)
        held = np.array([(r["step"], r["loss"]) for r in records if r["phase"] == "validation"]).reshape(
            -1, 2
        )
        if len(train):
            _training(axis, train)
        if len(held):
            _validation(axis, held)
        unit = "reconstruction + quantiser loss" if stage == "tokenizer" else "cross-entropy (nats per token)"
        axis.set(title=stage, xlabel="optimizer step", ylabel=unit)
        _decades(axis, np.concatenate([train[:, 1], held[:, 1]]))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(figure, axes)
    return Chart(
        "losses",
        "Loss by stage",
        "Loss on training batches (grey) and on the held-out validation windows (blue). The dashed line marks the "
        "weights that were kept, those of the lowest validation loss; where training went on without getting better, "
        "the region is shaded. Step 0 is the starting model.",
        figure,
    )


def _decades(axis: Axes, losses: Floats) -> None:
    """A logarithmic axis where the first losses would press all others flat."""
    if len(losses) and losses.min() > 0 and losses.max() > 2.5 * losses.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.12)


def _training(axis: Axes, points: Floats) -> None:
    """Every step faintly, and the mean over a twentieth of them."""
    stride = max(1, len(points) // _MOST_POINTS)
    axis.plot(*points[::stride].T, color=MUTED, alpha=0.3, linewidth=0.7)
    width = max(1, len(points) // 20)
    if width > 1:
        sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
        first = np.maximum(np.arange(1, len(sums)) - width, 0)
        smooth = (sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)
        axis.plot(points[::stride, 0], smooth[::stride], color=MUTED, linewidth=1.4, label="training")
    else:
        axis.plot([], [], color=MUTED, label="training")


def _validation(axis: Axes, points: Floats) -> None:
    axis.plot(*points.T, color=BLUE, marker="o", markersize=4, linewidth=1.4, label="validation")
    best = int(points[:, 1].argmin())
    labelled = range(len(points)) if len(points) <= _MOST_LABELS else {0, best, len(points) - 1}
    for at in labelled:
        if at != best:
            axis.annotate(
                f"{points[at, 1]:.3f}", points[at], xytext=(0, 7), textcoords="offset points", fontsize=8,
                ha="center", color=BLUE,
            )  # fmt: skip
    step, loss = points[best]
    axis.axvline(step, color=GREEN, linestyle="--", linewidth=1.2, label="kept")
    right = best > len(points) / 2
    axis.annotate(
        f"kept: step {step:,.0f}, {loss:.4f}", (step, 0.97), xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0), textcoords="offset points", ha="right" if right else "left", va="top",
        fontsize=9, color=GREEN, fontweight="bold",
    )  # fmt: skip
    if best < len(points) - 1:
        worse = 100 * (points[-1, 1] / loss - 1)
        axis.axvspan(step, points[-1, 0], color=VERMILION, alpha=0.1, linewidth=0, label="overfitting")
        axis.annotate(
            f"{worse:+.2f} % at the end", (points[-1, 0], 0.88), xycoords=("data", "axes fraction"),
            xytext=(-4, 0), textcoords="offset points", ha="right", va="top", fontsize=8.5, color=VERMILION,
        )  # fmt: skip


def leaderboard_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """CRPS skill of every model over all series, with its interval."""
    chosen = [row for row in rows if row["series"] == "all" and row["skill"] is not None][::-1]
    figure, (axis,) = canvas(1, height=1.2 + 0.42 * len(chosen))
    for place, row in enumerate(chosen):
        colour = MODELS.get(str(row["model"]).removesuffix(RAW), PURPLE)
        low, high = row.get("skill_low"), row.get("skill_high")
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axis.plot(row["skill"], place, "o", color=colour, markersize=7)
        axis.annotate(
            f"{row['skill']:+.3f}", (row["skill"], place), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    axis.axvline(0, color=MUTED, linewidth=1)
    axis.set_yticks(range(len(chosen)), [name_of(row["model"]) for row in chosen])
    axis.set(xlabel="CRPS skill: 1 - CRPS / CRPS of the last value", ylim=(-0.6, len(chosen) - 0.2))
    axis.margins(x=0.08)
    return Chart(
        "leaderboard",
        "Skill against saying that the price stays",
        "Right of zero is better than the last value, 1 would be perfect. Bars are 95 % intervals by a block bootstrap "
        "over time, which respects that forecasts overlap.",
        figure,
    )


def skill_chart(scores: Scores, *, model: str = "challenger", reference: str = "last_value") -> Chart:
    """Skill by step, the model's with its interval."""
    figure, (axis,) = canvas(1)
    steps = np.arange(1, scores.horizon + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = skill_by_step(scores, model, reference=reference)
        axis.fill_between(
            steps, found.low, found.high, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval"
        )
        base = scores.crps[scores.index(reference)].mean(axis=0)
        for at, name in enumerate(scores.models):
            if name != reference:
                skill = 1 - scores.crps[at].mean(axis=0) / base
                width = 2.0 if name == model else 1.2
                style: Any = {"linewidth": width, "linestyle": dashes_of(scores, name)}
                axis.plot(steps, skill, color=colour_of(scores, name), label=name_of(name), **style)
    axis.axhline(0, color=MUTED, linewidth=1)
    axis.set(xlabel=f"step ({scores.interval} candles ahead)", ylabel="CRPS skill against the last value")
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    _limit(axis, [found.low, found.high])
    legend(figure, [axis])
    return Chart(
        "skill",
        "Skill by step",
        f"1 - CRPS / CRPS of the last value at each step; the band is the {name_of(model)}'s 95 % interval. Above zero "
        "is better than saying that the price stays. Curves far below the band are cut off.",
        figure,
    )


def pit_chart(scores: Scores, *, model: str = "challenger") -> Chart:
    """Where the truth fell within the forecast distribution."""
    figure, (axis,) = canvas(1)
    bins = 20
    edges = np.linspace(0, 1, bins + 1)
    axis.bar(edges[:-1], pit_histogram(scores, model, bins=bins), width=1 / bins, align="edge", color=BLUE,
             alpha=0.45, edgecolor=PAPER, label=name_of(model))  # fmt: skip
    for name in ("champion", "base"):
        if name in scores.models:
            axis.stairs(pit_histogram(scores, name, bins=bins), edges, color=colour_of(scores, name), linewidth=1.4,
                        label=name_of(name))  # fmt: skip
    axis.axhline(1, color=MUTED, linestyle="--", linewidth=1, label="calibrated")
    serving = [
        pit_histogram(scores, name, bins=bins) for name in (model, "champion") if name in scores.models
    ]
    axis.set(xlabel="PIT: share of the forecast below what came", ylabel="density", xlim=(0, 1))
    axis.set_ylim(0, max(2.0, 1.15 * float(np.max(serving))))
    legend(figure, [axis])
    return Chart(
        "pit",
        "Calibration: PIT histogram",
        "Flat at 1 is calibrated. A U says that the fan is too narrow, a hump that it is too wide, a slope that it is "
        "biased up or down. All steps and series; what rises beyond the frame is cut off.",
        figure,
    )


def reliability_chart(scores: Scores, *, model: str = "challenger") -> Chart:
    """Stated against observed probability of a higher close at the last step."""
    figure, (axis,) = canvas(1, width=6.4, height=5.2)
    axis.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="reliable")
    for name in (model, "champion", "base"):
        if name not in scores.models:
            continue
        found = reliability(scores, name)
        seen = found.count > 0
        colour = colour_of(scores, name)
        axis.plot(found.stated[seen], found.observed[seen], color=colour, linewidth=1.2, alpha=0.8)
        sizes = 12 + 180 * found.count[seen] / found.count.sum()
        axis.scatter(
            found.stated[seen], found.observed[seen], s=sizes, color=colour, label=name_of(name), zorder=3
        )
        if name == model:
            for x, y, count in zip(found.stated[seen], found.observed[seen], found.count[seen], strict=True):
                axis.annotate(
                    f"{count}", (x, y), xytext=(7, -9), textcoords="offset points", fontsize=8, color=INK
                )
    axis.set(xlabel="stated P(up) over the whole horizon", ylabel="share that rose", xlim=(-0.02, 1.02),
             ylim=(-0.04, 1.04))  # fmt: skip
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, [axis])
    return Chart(
        "reliability",
        "Reliability of P(up)",
        "How often the close at the last step was higher, where the model said so with about this probability. On the "
        f"diagonal is reliable. Numbers and sizes count the {name_of(model)}'s forecasts; few say little.",
        figure,
    )


def coverage_chart(scores: Scores, *, model: str = "challenger") -> Chart:
    """Share of closes inside the central intervals, by step."""
    figure, (axis,) = canvas(1)
    steps = np.arange(1, scores.horizon + 1)
    for share, colour in zip(LEVELS, (GREEN, ORANGE, BLUE, PURPLE), strict=True):
        axis.axhline(share, color=colour, linestyle="--", linewidth=0.9, alpha=0.8)
        axis.plot(steps, coverage_by_step(scores, model, share), color=colour, marker="o", markersize=3, linewidth=1.4,
                  label=f"{share:.0%} interval")  # fmt: skip
    axis.set(
        xlabel=f"step ({scores.interval} candles ahead)", ylabel="share of closes inside", ylim=(0, 1.02)
    )
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    legend(figure, [axis])
    return Chart(
        "coverage",
        "Coverage by step",
        f"How many closes the {name_of(model)}'s central intervals hold. The dashed line of the same colour is where "
        "the curve belongs; below it the fan is too narrow.",
        figure,
    )


def _limit(axis: Axes, bounds: Sequence[Floats]) -> None:
    """Show the band whole, with half its height above and below, and no more of curves far off."""
    values = np.concatenate([*bounds, [0.0]])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    room = 0.5 * max(high - low, 0.02)
    axis.set_ylim(low - room, high + room)
