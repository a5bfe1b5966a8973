"""Draw images/architecture.svg from the import contracts in pyproject.toml and the imports that there really are.

Rows are the layers of the contract, boxes its packages with the first line of their docstrings and those libraries they
import that a contract speaks of; an arrow is at least one import. Only what crosses a border is drawn, so most changes
leave the picture alone.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import escape

import grimp

__all__ = ["PICTURE", "picture"]

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

_WIDTH, _MARGIN = 1120, 40
_BOX_W, _BOX_H, _ROW_H = 400, 132, 210  # pixels
_TOP = 76
_COLOURS = ("#4c6ef5", "#7048e8", "#1098ad", "#2f9e44", "#e8590c", "#c2255c")

_VOCABULARY = "kronos_model.settings"  # what a setting may be: of use to all, and imports nothing


@dataclass(frozen=True)
class Box:
    """One package: where its upper left corner is, and what it says."""

    name: str
    x: int
    y: int
    colour: str
    says: str
    libraries: list[str]


def picture() -> str:
    """The SVG's text."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    boxes = _boxes(rules)
    contracts = [one["name"] for one in rules["contracts"]]
    foot = max(box.y for box in boxes.values()) + _BOX_H + 44
    height = foot + 24 * len(contracts) + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(_MARGIN, 36, "What imports what", size=20, weight="bold"),
            _text(
                _MARGIN, 58, "An arrow is an import; imports point down, and import-linter holds them there."
            ),
            *_arrows(boxes),
            *(line for box in boxes.values() for line in _drawn(box)),
            *(_text(_MARGIN, foot + 24 * n, f"\u2713 {name}") for n, name in enumerate(contracts)),
            "</svg>\n",
        ]
    )


def _boxes(rules: dict[str, Any]) -> dict[str, Box]:
    """A box per package, a row per layer."""
    layers = next(one["layers"] for one in rules["contracts"] if one["type"] == "layers")
    colours, boxes = iter(_COLOURS), {}
    libraries = _libraries(rules)
    for row, layer in enumerate(layers):
        names = [name.strip() for name in layer.split("|")]
        for column, name in enumerate(names):
            middle = _WIDTH * (2 * column + 1) // (2 * len(names))
            boxes[name] = Box(
                name,
                middle - _BOX_W // 2,
                _TOP + row * _ROW_H,
                next(colours),
                _first_line(name),
                libraries[name],
            )
    return boxes


def _first_line(package: str) -> str:
    """The first sentence of a package's docstring."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return first.split(". ")[0].rstrip(".")


def _imports(packages: list[str]) -> list[tuple[str, str]]:
    """Which package imports which."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    found = {
        (source.split(".")[0], target.split(".")[0])
        for source in graph.modules
        for target in graph.find_modules_directly_imported_by(source)
        if target != _VOCABULARY
    }
    return sorted((source, target) for source, target in found if source != target)


def _libraries(rules: dict[str, Any]) -> dict[str, list[str]]:
    """What each package imports of the libraries that some contract keeps out of somewhere."""
    packages = rules["root_packages"]
    named = {name for one in rules["contracts"] for name in one.get("forbidden_modules", [])} - set(packages)
    graph = grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)
    pairs = {
        (source.split(".")[0], target)
        for target in named & graph.modules
        for source in graph.find_modules_that_directly_import(target)
    }
    return {package: sorted(library for user, library in pairs if user == package) for package in packages}


def _drawn(box: Box) -> list[str]:
    lines = wrap(box.says, 58)[:2]
    uses = wrap(", ".join(box.libraries), 58)[:3]
    return [
        f'<rect x="{box.x}" y="{box.y}" width="{_BOX_W}" height="{_BOX_H}" rx="10" fill="#ffffff" '
        f'stroke="{box.colour}" stroke-width="2.5"/>',
        _text(box.x + 18, box.y + 30, f"{box.name}/", size=18, weight="bold", colour=box.colour),
        *(_text(box.x + 18, box.y + 52 + 16 * n, line) for n, line in enumerate(lines)),
        *(_text(box.x + 18, box.y + 88 + 16 * n, line, colour="#868e96") for n, line in enumerate(uses)),
    ]


def _arrows(boxes: dict[str, Box]) -> list[str]:
    """A curve per import; those that pass a row take a lane of their own through its middle, where no box is."""
    pairs = _imports(list(boxes))
    passing = [(one, other) for one, other in pairs if boxes[other].y - boxes[one].y > _ROW_H]
    return [
        _arrow(boxes, one, other, lane=_lane(passing.index((one, other)), len(passing)))
        if (one, other) in passing
        else _arrow(boxes, one, other)
        for one, other in pairs
    ]


def _lane(number: int, count: int) -> int:
    """The x of a lane between two boxes that share a row."""
    gap = _WIDTH // 2 - _BOX_W
    return _WIDTH // 2 - gap // 2 + gap * (number + 1) // (count + 1)


def _arrow(boxes: dict[str, Box], source: str, target: str, *, lane: int | None = None) -> str:
    """From the lower edge of one box to the upper edge of another."""
    one, other = boxes[source], boxes[target]
    order = list(boxes)
    leaves = one.x + _BOX_W * (1 + order.index(target)) // (1 + len(order))
    enters = other.x + _BOX_W * (1 + order.index(source)) // (1 + len(order))
    y1, y2 = one.y + _BOX_H, other.y - 9
    bend = (_ROW_H - _BOX_H) // 2
    if lane is None:
        path = f"C{leaves} {y1 + bend} {enters} {y2 - bend} {enters} {y2}"
    else:
        down, out = y1 + 2 * bend, y2 - 2 * bend
        path = (
            f"C{leaves} {y1 + bend} {lane} {y1 + bend} {lane} {down} L{lane} {out} "
            f"C{lane} {y2 - bend} {enters} {y2 - bend} {enters} {y2}"
        )
    return (
        f'<g stroke="{one.colour}" fill="none" stroke-width="1.8"><path d="M{leaves} {y1} {path}"/>'
        f'<path d="M{enters - 5} {y2 - 1} L{enters} {y2 + 8} L{enters + 5} {y2 - 1} Z" fill="{one.colour}"/></g>'
    )


def _text(
    x: int, y: int, text: str, *, size: int = 12, weight: str = "normal", colour: str = "#343a40"
) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
