"""Write recipes.md from the recipes themselves: what each is, where they differ, and what every setting means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from flows.config import Knob, RunConfig, field_docs, knobs
from flows.recipes import RECIPES

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).with_name("recipes.md")

_TOP = """\
# Recipes

*Written by `make docs` from the code; a change belongs into the settings' own texts.*

A recipe is a whole night's configuration with a name. `kronos recipes` lists them, `kronos recipes NAME` shows every
setting of one, and `--set SETTING=VALUE`, the form in the Prefect UI (`settings`) and `prefect.yaml` change any of
them:

```
kronos run --recipe btc_1h --set predictor.epochs=4 --set dataset.lookback=256
```

Models, champion and repositories are kept by the recipe's name, so what is changed by hand still competes with the
recipe's champion. A recipe of your own is a function in `flows/recipes.py` that returns a `RunConfig`.
"""

_DIFFERENCES = """
## Where they differ

Everything that is not here is the same in all of them, and is the default below. `paper_1h` measures a network as the
paper draws it, without post-processing: the gate asks it to beat the references by itself, and until it does they
serve; with `--set evaluation.postprocess=true` its sampling is chosen anew and it may serve in their pool.
"""

_SETTINGS = """
## Every setting

*Default* is what a recipe gets that says nothing else. Shares are 0 to 1, times and days are UTC, *empty* is written
as nothing (`--set start=`).
"""


def page() -> str:
    """The whole page."""
    every = {name: list(knobs(function())) for name, function in RECIPES.items()}
    told = ((f"`{name}`", (function.__doc__ or "").strip()) for name, function in RECIPES.items())
    parts = [
        _TOP,
        *_table(("recipe", "what it is"), told),
        _DIFFERENCES,
        *_table(("setting", *(f"`{name}`" for name in every)), _differences(every)),
        _SETTINGS,
        *_sections(),
    ]
    return "\n".join(parts) + "\n"


def _differences(every: dict[str, list[Knob]]) -> Iterator[list[str]]:
    """A row per setting whose values are not all the same; the name of a recipe is not one."""
    for row in zip(*every.values(), strict=True):
        values = [_value(knob.value) for knob in row]
        if len(set(values)) > 1 and row[0].path != "recipe":
            yield [f"`{row[0].path}`", *values]


def _sections() -> Iterator[str]:
    """A table per group of settings, in order of definition."""
    nothing_said = RunConfig(recipe="NAME", series=("um:DOGEUSDT",))
    meanings = field_docs(RunConfig)
    for group, members in groupby(knobs(nothing_said), key=lambda knob: knob.path.rpartition(".")[0]):
        yield f"\n### {group or 'The run'}\n"
        if group:
            yield f"{meanings[group]}\n"
        if group == "predictor":
            yield "The settings, their meanings and their defaults are those of [tokenizer](#tokenizer)."
            assert nothing_said.predictor == nothing_said.tokenizer
            continue
        yield from _table(("setting", "default", "type", "meaning"), map(_row, members))


def _row(knob: Knob) -> tuple[str, str, str, str]:
    required = knob.path in {"recipe", "series"}
    default = "each recipe's own" if required else _value(knob.value)
    return f"`{knob.path}`", default, _cell(knob.kind), _cell(" ".join(knob.help.split()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _value(value: Any) -> str:
    if value is None or value == "":
        return "*empty*"
    if isinstance(value, tuple | list):
        return _cell(", ".join(map(str, value))) or "*empty*"
    return _cell(str(value).lower() if isinstance(value, bool) else str(value))


def _cell(text: str) -> str:
    """Text that cannot end its cell, nor be taken for emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
