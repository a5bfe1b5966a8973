"""What every chart is made of: colours, axes, names, and the ways out as PNG and as SVG.

Colours are drawn in fixed shades and named in the SVG, so that a page can show other shades in the dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kronos_model.evaluation.scores import Scores
from storage.atomic import atomic_path

__all__ = [
    "BLUE",
    "COLOURS",
    "DAY_MS",
    "GREEN",
    "GRID",
    "INK",
    "MODELS",
    "MUTED",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RAW",
    "VERMILION",
    "Chart",
    "Floats",
    "canvas",
    "colour_of",
    "dashes_of",
    "legend",
    "name_of",
    "time_axis",
]

Floats = NDArray[np.float64]
DAY_MS = 86_400_000

# Okabe and Ito's palette, distinguishable with every common colour vision; (light page, dark page).
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#6b7280", "#9aa4b2"),
    "grid": ("#d0d7de", "#39424e"),
    "paper": ("#ffffff", "#12161c"),
    "blue": ("#0072b2", "#56b4e9"),
    "orange": ("#e69f00", "#f0b429"),
    "green": ("#009e73", "#2ec79a"),
    "vermilion": ("#d55e00", "#ff8243"),
    "purple": ("#cc79a7", "#e3a0c8"),
}
INK, MUTED, GRID, PAPER, BLUE, ORANGE, GREEN, VERMILION, PURPLE = (light for light, _ in COLOURS.values())
MODELS = {"challenger": BLUE, "champion": GREEN, "base": ORANGE, "last_value": MUTED}
_OTHERS = (PURPLE, VERMILION, INK, MUTED)
RAW = "_raw"  # a model before its spread was calibrated


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A picture, what it shows, and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self, folder: Path) -> Path:
        """Written to <folder>/<name>.png, on white."""
        target = folder / f"{self.name}.png"
        with atomic_path(target) as draft:
            self.figure.savefig(draft, format="png", dpi=120, facecolor=PAPER)
        self.figure.set_layout_engine("none")  # keep what was laid out: that is most of the work
        return target

    def svg(self) -> str:
        """For a page that defines --ink, --paper and the other colours; its text takes the page's font."""
        buffer = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        for name, (light, _) in COLOURS.items():
            text = text.replace(light, f"var(--{name})")
        text = re.sub(r' (width|height)="[^"]*"', "", text, count=2)  # the root's: the page gives it its size
        # Ids of one picture must not be those of another on the same page.
        return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{self.name}-", text)


def canvas(count: int, *, width: float = 9.0, height: float = 4.2) -> tuple[Figure, Sequence[Axes]]:
    """One wide axes, or several beside each other."""
    style: Any = {
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": INK, "ytick.color": INK,
        "grid.color": GRID, "axes.titlesize": 11, "font.size": 9.5,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(
            figsize=(width if count == 1 else (4.9, 4.9, 4.1)[count - 1] * count, height),
            layout="constrained",
        )
        axes = [figure.add_subplot(1, count, place) for place in range(1, count + 1)]
        for axis in axes:
            axis.grid(color=GRID, linewidth=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.patch.set_alpha(0)
    return figure, axes


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Below the axes, where it hides nothing; each label once."""
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=6, frameon=False, labelcolor=INK
    )


def time_axis(axis: Axes, *, ticks: int) -> None:
    locator = mdates.AutoDateLocator(tz=UTC, minticks=2, maxticks=ticks)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    formatter = mdates.ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_formatter(formatter)


def colour_of(scores: Scores, name: str) -> str:
    plain = name.removesuffix(RAW)
    if plain in MODELS:
        return MODELS[plain]
    return _OTHERS[_others(scores).index(name) % len(_OTHERS)]


def dashes_of(scores: Scores, name: str) -> str:
    """Uncalibrated models are dotted; baselines that share a colour differ by their dashes."""
    if name.endswith(RAW):
        return ":"
    others = _others(scores)
    return "-" if name not in others or others.index(name) < len(_OTHERS) else "--"


def _others(scores: Scores) -> list[str]:
    return [one for one in scores.models if one.removesuffix(RAW) not in MODELS]


def name_of(model: str) -> str:
    return model.replace("_", " ")
