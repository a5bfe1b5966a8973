"""A word names one idea: no two public classes, functions or modules of the product have one name.

What may repeat is written down here, with the reason.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")

MODULES = {
    "config": "the settings of the package it stands in",
    "errors": "the errors of the package it stands in",
    "dataset": "one act: storage writes datasets, the task wraps that",
    "evaluate": "one act: the flow orders, the task wraps",
    "forecast": "one act: the flow orders, the task wraps",
    "monitor": "one act: the flow orders, the task wraps, the exchange does it",
    "publish": "one act: the task wraps what the model's package does",
    "train": "one act: the task starts what the model's package runs",
}
FUNCTIONS = {
    "each": "the command starts the flow",
    "deploy": "the command starts the site's function",
    "evaluate": "the command starts the flow, which calls the task",
    "finetune": "the command starts the flow",
    "forecast": "the command starts the flow, which calls the task",
    "gc": "the command starts the flow",
    "ingest": "the command starts the flow",
    "monitor": "the command starts the flow, which calls the task",
    "promote": "the command calls the task",
    "serve": "the command calls the service",
    "up": "the command calls the site's function",
    "main": "entry points of processes",
    "build_dataset": "one act: the flow's step and what storage does",
    "write_json": "the model's package and storage do not know each other, and both write atomically",
}


def _modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def _repeated(kind: type[ast.AST]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in _modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, kind) and not getattr(node, "name", "_").startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))  # type: ignore[attr-defined]
    return {name: places for name, places in found.items() if len(places) > 1}


def test_every_class_has_a_name_of_its_own() -> None:
    assert _repeated(ast.ClassDef) == {}


def test_every_module_has_a_name_of_its_own_but_those_written_down() -> None:
    found = defaultdict(list)
    for path in _modules():
        if not path.stem.startswith("__"):
            found[path.stem].append(str(path.relative_to(ROOT)))
    repeated = {name: places for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in repeated.items() if name not in MODULES} == {}
    assert sorted(MODULES) == sorted(repeated), "an exception that is none any more is taken out"


def test_every_function_has_a_name_of_its_own_but_those_written_down() -> None:
    repeated = _repeated(ast.FunctionDef)
    assert {name: places for name, places in repeated.items() if name not in FUNCTIONS} == {}
    assert sorted(FUNCTIONS) == sorted(repeated), "an exception that is none any more is taken out"


@pytest.mark.parametrize("charming", ["tell", "shelf", "room", "tape", "turns", "walks", "keeper", "inbox"])
def test_a_module_says_what_it_is_before_it_charms(charming: str) -> None:
    assert [str(path) for path in _modules() if path.stem == charming] == []
