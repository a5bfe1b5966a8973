"""The picture of a training: the losses of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tasks.reports import chart_style as style
from tasks.reports.chart_style import Chart, Floats

__all__ = ["loss_chart"]

_MOST_POINTS = 600  # of a training curve: more cannot be seen
_MOST_LABELS = 12


def loss_chart(jobs: Mapping[str, Path]) -> Chart:
    """Training and validation loss per stage; the kept weights and what lies beyond them are marked."""
    figure, axes = style.canvas(len(jobs))
    for axis, (stage, job) in zip(axes, jobs.items(), strict=True):
        records = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        train, held = (
            np.array([(r["step"], r["loss"]) for r in records if r["phase"] == phase]).reshape(-1, 2)
            for phase in ("train", "validation")
        )
        if len(train):
            _training(axis, train)
        if len(held):
            _validation(axis, held)
        unit = "reconstruction + quantiser loss" if stage == "tokenizer" else "cross-entropy (nats per token)"
        axis.set(title=stage, xlabel="optimizer step", ylabel=unit)
        _decades(axis, np.concatenate([train[:, 1], held[:, 1]]))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.legend(figure, axes)
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
    axis.plot(*points[::stride].T, color=style.MUTED, alpha=0.3, linewidth=0.7)
    width = max(1, len(points) // 20)
    if width > 1:
        sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
        first = np.maximum(np.arange(1, len(sums)) - width, 0)
        smooth = (sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)
        axis.plot(points[::stride, 0], smooth[::stride], color=style.MUTED, label="training")
    else:
        axis.plot([], [], color=style.MUTED, label="training")


def _validation(axis: Axes, points: Floats) -> None:
    axis.plot(*points.T, color=style.BLUE, marker="o", label="validation")
    best = int(points[:, 1].argmin())
    labelled = range(len(points)) if len(points) <= _MOST_LABELS else {0, best, len(points) - 1}
    for at in labelled:
        if at != best:
            style.note(axis, f"{points[at, 1]:.3f}", points[at], colour=style.BLUE)
    step, loss = points[best]
    axis.axvline(step, color=style.GREEN, linestyle="--", label="kept")
    right = best > len(points) / 2
    top: Any = {"xycoords": ("data", "axes fraction"), "va": "top"}
    style.note(
        axis, f"kept: step {step:,.0f}, {loss:.4f}", (step, 0.97), offset=(-6 if right else 6, 0), colour=style.GREEN,
        ha="right" if right else "left", fontweight="bold", **top,
    )  # fmt: skip
    if best < len(points) - 1:
        worse = 100 * (points[-1, 1] / loss - 1)
        axis.axvspan(step, points[-1, 0], color=style.VERMILION, alpha=0.1, linewidth=0, label="overfitting")
        at_end = f"{worse:+.2f} % at the end"
        style.note(
            axis, at_end, (points[-1, 0], 0.88), offset=(-4, 0), colour=style.VERMILION, ha="right", **top
        )
