"""Bounds of settings: in the annotation of every one, and the same wherever a value comes from."""

import ast
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from docs.make_recipes import page
from flows.config import ConfigError, Knob, RunConfig, knobs, override
from flows.nightly import nightly
from flows.recipes import recipe
from kronos_model.jobs import Reference
from kronos_model.settings import Bounds, limits_of
from tests.support.forms import form_fields
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")
ENDINGS = ("Config", "Policy", "Limits", "Choice", "Style", "Fault", "Job", "Preset", "Normaliser")
UNBOUNDED = {
    ("PartFault", "until_ms"): "any time",
    ("ArchiveStyle", "spot_header_from_ms"): "any time",
    ("ArchiveStyle", "um_header_from_ms"): "any time",
    ("ArchiveStyle", "spot_us_from_ms"): "any time",
    ("ArchiveStyle", "um_us_from_ms"): "any time",
}
HERE = Reference(path="here", digest="0")
REQUIRED: dict[str, dict[str, Any]] = {
    "RunConfig": {"recipe": "any", "series": ("um:DOGEUSDT",)},
    "WatchConfig": {"series": ("um:DOGEUSDT",)},
    "Job": {"stage": "tokenizer", "dataset": HERE, "tokenizer": HERE},
    "Calibration": {
        "levels": (0.5,), "factors": ((1.0,),),
        "origins": 10, "samples": 8, "temperature": 1.0, "top_k": 0, "top_p": 0.9,
    },
    "PostProcess": {
        "horizon": 4, "lookback": 64, "interval": "1h", "temperature": 1.0, "top_k": 0, "top_p": 1.0,
        "location": (1.0,), "members": ("network",), "weights": (1.0,), "spread": None, "spread_alone": None,
        "origins": 10, "samples": 8,
    },
    "Step": {"name": "blend", "kept": True, "reason": "it moves nothing"},
    "Fault": {"kind": "slow"},
    "PartFault": {"kind": "absent"},
}  # fmt: skip
RELATED = {  # what is within its own bounds may still not go with another setting
    "train_share": "sum below 1",
    "validation_share": "sum below 1",
    "coverage_low": "ascending",
    "coverage_high": "ascending",
    "d_model": "multiple of",
    "n_heads": "multiple of",
    "s1_bits": "group_size must divide",
    "s2_bits": "group_size must divide",
    "max_samples": "sampling.samples must be at most",
}


def _settings() -> Iterator[tuple[str, ast.ClassDef]]:
    """Module and definition of each class of settings."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for one in ast.walk(ast.parse(path.read_text())):
                if isinstance(one, ast.ClassDef) and (_is_checked(one) or _is_named_so(one)):
                    yield ".".join(path.relative_to(ROOT).with_suffix("").parts), one


def _is_checked(one: ast.ClassDef) -> bool:
    return bool({"settings", "checked"} & {ast.unparse(each) for each in one.decorator_list})


def _is_named_so(one: ast.ClassDef) -> bool:
    return bool(one.decorator_list) and one.name.endswith(ENDINGS)


SETTINGS = list(_settings())


def _bounded() -> Iterator[Any]:
    """An example of each class of settings, with each of its bounds."""
    for module, one in SETTINGS:
        kind = getattr(import_module(module), one.name)
        if one.name == "Preset":
            continue
        for name, hint in get_type_hints(kind, include_extras=True).items():
            for limit in limits_of(hint):
                if isinstance(limit, Bounds):
                    yield pytest.param(
                        kind(**REQUIRED.get(one.name, {})), name, limit, id=f"{one.name}.{name}"
                    )


def _outside(bounds: Bounds, number: type) -> list[float]:
    step = number(1)
    found = [bounds.ge - step if bounds.ge is not None else bounds.gt, bounds.lt]
    found.append(bounds.le + step if bounds.le is not None else None)
    return [number(value) for value in found if value is not None]


def _inside(bounds: Bounds, number: type) -> list[float]:
    step = 1 if number is int else 1e-9
    found = [bounds.ge, bounds.le, None if bounds.gt is None else bounds.gt + step]
    found.append(None if bounds.lt is None else bounds.lt - step)
    return [number(value) for value in found if value is not None]


def _number(kind: Any, name: str) -> type:
    return int if "int" in str(get_type_hints(kind)[name]) else float


def test_settings_are_found_where_they_are() -> None:
    names = {one.name for _, one in SETTINGS}
    assert {type(getattr(recipe("demo"), one.name)).__name__ for one in fields(RunConfig)} - names == {
        "str",
        "tuple",
        "int",
        "NoneType",
    }
    assert {"ServiceConfig", "RetentionPolicy", "WatchConfig", "Job", "TokenizerConfig"} <= names


@pytest.mark.parametrize(("module", "one"), SETTINGS, ids=[one.name for _, one in SETTINGS])
def test_every_number_among_the_settings_has_bounds(module: str, one: ast.ClassDef) -> None:
    assert _is_checked(one), f"{one.name} is not checked"
    for name, hint in get_type_hints(getattr(import_module(module), one.name), include_extras=True).items():
        if name != "_" and {"int", "float"} & set(_words(hint)) and (one.name, name) not in UNBOUNDED:
            assert any(isinstance(limit, Bounds) for limit in limits_of(hint)), f"{one.name}.{name}"


def _words(hint: Any) -> list[str]:
    """The plain types in an annotation; numbers in a tuple are counted off elsewhere."""
    if str(hint).startswith(("tuple", "collections", "typing.Literal")):
        return []
    return str(hint).replace("<class '", " ").replace("[", " ").replace(",", " ").replace("'", " ").split()


@pytest.mark.parametrize(("example", "name", "bounds"), _bounded())
def test_a_bound_holds_at_construction(example: Any, name: str, bounds: Bounds) -> None:
    number = _number(type(example), name)
    for value in (*_outside(bounds, number), float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=f"^{name}: expected .*, found {value!r}"):
            replace(example, **{name: value})
    for value in _inside(bounds, number):
        try:
            assert getattr(replace(example, **{name: value}), name) == value
        except ValueError as error:
            assert RELATED[name] in str(error)  # noqa: PT017  (most bounds are accepted)


FORM = form_fields(nightly)
KNOBS = [
    pytest.param(knob, limit, id=knob.path)
    for knob in knobs(recipe("demo"))
    for limit in limits_of(knob.annotation)
]


def test_the_settings_that_went_unbounded_are_among_them() -> None:
    bounded = {one.id for one in KNOBS}
    assert {"dataset.train_share", "gate.draws", "gate.seed", "seed", "exchange.um_url"} <= bounded


@pytest.mark.parametrize(("knob", "limit"), KNOBS)
def test_command_line_form_and_pages_have_the_bounds_of_the_annotation(knob: Knob, limit: Any) -> None:
    assert str(limit) in knob.kind
    assert limit.schema().items() <= FORM[knob.path].items()
    if isinstance(limit, Bounds):
        for value in _outside(limit, int if "int" in knob.kind else float):
            with pytest.raises(
                ConfigError, match=f"^{knob.path}: expected .*, found {value}; (raise|lower) it"
            ):
                override(recipe("demo"), {knob.path: str(value)})


def test_bounds_are_shown(terminal: Terminal) -> None:
    shown = " ".join(terminal("recipes", "demo").out.split())
    told = page()
    for words in (
        "int (at least 2 candles)",
        "float (above 0 and below 1)",
        "int (from 100 to 1000000)",
    ):
        assert words in told
        assert all(word in shown for word in words.split()), words
    complaint = terminal.refused("run", "--set", "gate.draws=10")
    assert "gate.draws: expected from 100 to 1000000, found 10; raise it" in complaint
