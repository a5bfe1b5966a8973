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
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from kronos_model.evaluation.scores import BLENDS, RAW, REFERENCES_POOL, Scores
from storage.atomic import atomic_path

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
CHALLENGER = "challenger"
_MODELS = {CHALLENGER: BLUE, "champion": GREEN, "base": ORANGE, "last_value": MUTED, REFERENCES_POOL: INK}
_MODELS |= {blend: _MODELS[network] for network, blend in BLENDS.items()}
_SERVED = "served: "
_LABEL_INCHES = 1.8  # of a column of a legend with its line, so that no label is cut off
_OTHERS = (PURPLE, VERMILION, INK, MUTED)

STYLE: Any = {
    "text.color": INK, "axes.titlecolor": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "xtick.color": INK, "ytick.color": INK, "axes.facecolor": "none", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "font.size": 9.5, "lines.linewidth": 1.4, "figure.titlesize": 12, "figure.constrained_layout.use": True,
}  # fmt: skip
"""For mpl.rc_context, while a figure and its axes are made."""


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A picture, what it shows, and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self, folder: Path) -> Path:
        """Written to <folder>/<name>.png, on white."""
        path = save(self.figure, folder / f"{self.name}.png")
        self.figure.set_layout_engine("none")  # keep what was laid out: that is most of the work
        return path

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


def save(figure: Figure, target: Path) -> Path:
    """Written as PNG, on white."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as draft:
        figure.savefig(draft, format="png", dpi=120, facecolor=PAPER)
    return target


def canvas(
    count: int, *, columns: int = 3, width: float = 9.0, height: float = 4.2, title: str | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """One axes of this width, or several in rows; inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=((width, 9.8, 12.3)[columns - 1], height * rows))
        figure.suptitle(title or "")
        return figure, [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Below the axes, where it hides nothing; each label once, what is served first."""
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    known = dict(sorted(known.items(), key=lambda one: not one[0].startswith(_SERVED)))
    columns = int(figure.get_figwidth() // _LABEL_INCHES)
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK
    )


def note(
    axis: Axes, text: str, at: Any, *, offset: tuple[float, float] = (0, 7), colour: str = INK, **more: Any
) -> None:
    """Small words beside a point, offset in points."""
    settings: Any = {"fontsize": 8.5, "ha": "center", "color": colour} | more
    axis.annotate(text, at, xytext=offset, textcoords="offset points", **settings)


def time_axis(axis: Axes) -> None:
    """Of days since 1970 (DAY_MS), told in UTC."""
    locator = mdates.AutoDateLocator(tz=UTC, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    formatter = mdates.ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_formatter(formatter)
    axis.set_xlabel("time (UTC)")


def price_axis(axis: Axes) -> None:
    """Of prices from a fraction of a cent to millions."""
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))


def contenders(scores: Scores) -> list[str]:
    """The challenger and what it is to beat, of the models that were judged."""
    return [name for name in (CHALLENGER, "champion", "base") if name in scores.models]


def served_and_contenders(scores: Scores, served: str) -> dict[str, str]:
    """What a user gets, then the contenders, each with its label."""
    names = dict.fromkeys((served, *contenders(scores)))
    return {name: _SERVED * (name == served) + name_of(name) for name in names}


def colour_of(models: Sequence[str], name: str) -> str:
    """The colour of one of the models that were judged together."""
    plain = name.removesuffix(RAW)
    return _MODELS.get(plain) or _OTHERS[_others(models).index(name) % len(_OTHERS)]


def dashes_of(models: Sequence[str], name: str) -> str:
    """Networks as they draw are dotted, pools dashed and dotted; baselines that share a colour differ by dashes."""
    if name in (*BLENDS.values(), REFERENCES_POOL):
        return "-."
    if name.endswith(RAW):
        return ":"
    others = _others(models)
    return "-" if name not in others or others.index(name) < len(_OTHERS) else "--"


def _others(models: Sequence[str]) -> list[str]:
    return sorted(one for one in models if one.removesuffix(RAW) not in _MODELS)


def name_of(model: str) -> str:
    """A model as people write it."""
    return model.replace("_", " ")
