"""Settings: one definition each, overridden in one way, refused in one sentence."""

import ast
import re
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from flows.config import ConfigError, Knob, config_digest, knobs, parse_assignments
from flows.recipes import RECIPES, IntervalName, RecipeName, configure, recipe, recipe_of
from storage.interval import INTERVALS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_configuration_under_its_own_name(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert config.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_has_a_meaning(name: str) -> None:
    for knob in knobs(recipe(name)):
        assert knob.help, f"{knob.path} has no text under its field"


def test_text_is_parsed_by_the_type_of_its_setting() -> None:
    config = configure(
        "doge_1h",
        {
            "dataset.lookback": "80",
            "predictor.learning_rate": "1e-5",
            "dataset.purge": "false",
            "series": "um:BTCUSDT, um:ETHUSDT",
            "start": "2023-01-31",
            "predictor.steps_per_epoch": "",
        },
    )
    assert config.dataset.lookback == 80
    assert config.predictor.learning_rate == 1e-5
    assert config.dataset.purge is False
    assert config.series == ("um:BTCUSDT", "um:ETHUSDT")
    assert config.start == date(2023, 1, 31)
    assert config.predictor.steps_per_epoch is None


def test_a_form_may_send_nested_values() -> None:
    assert configure("demo", {"dataset": {"lookback": 70}}).dataset.lookback == 70


def test_a_value_that_is_not_given_stays_as_in_the_recipe() -> None:
    assert configure("demo", None, series=None, interval=None) == recipe("demo")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dataset.lokback": "80"}, "did you mean dataset.lookback"),
        ({"nonsense": "1"}, "Expected a known setting, found 'nonsense'"),
        ({"recipe": "other"}, "Expected a known setting, found 'recipe'"),
        (
            {"evaluation.calibrate": "false"},
            "found 'evaluation.calibrate', which is called evaluation.postprocess now; rename it",
        ),
        ({"evaluation": {"calibration_origins": 9}}, "which is called evaluation.postprocess_origins now"),
        (
            {"dataset.lookback": "many"},
            r"dataset.lookback: expected int \(at least 2 candles\), found 'many'",
        ),
        ({"model.preset": "huge"}, r"model.preset: expected tiny\|mini\|small\|base, found 'huge'"),
        ({"dataset.lookback": "-3"}, "dataset.lookback: expected at least 2 candles, found -3; raise it"),
        ({"series": ""}, "Expected at least one series"),
        ({"series": "um:BTCUSDT um:BTCUSDT"}, "Expected each series once"),
        ({"start": "2024-02-01", "end": "2024-01-01"}, "Expected start before end"),
        ({"seed": "-1"}, "^seed: expected from 0 to 4294967295, found -1; raise it"),
        ({"model.threads": "0"}, "model.threads: expected at least 1 or empty, found 0; raise it"),
        ({"model.processes": "0"}, "model.processes: expected at least 1 or empty, found 0; raise it"),
        ({"exchange.attempts": "0"}, "^exchange.attempts: expected at least 1, found 0; raise it"),
        (
            {"exchange.um_url": "binance"},
            "exchange.um_url: expected a URL such as https://.*, found 'binance'",
        ),
        (
            {"tokenizer.clip_norm": "nan"},
            r"tokenizer.clip_norm: expected float \(above 0\), found nan; correct it",
        ),
        ({"gate.draws": "1e12"}, "gate.draws"),
        (
            {"dataset.train_share": "70"},
            "dataset.train_share: expected above 0 and below 1, found 70.0; lower it",
        ),
        ({"start": "2024-02-01", "end": "2024-02-01"}, "Expected start before end"),
        ({"start": "yesterday"}, "start: expected date or empty, found 'yesterday'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        configure("demo", settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean doge_1h"):
        configure("doge1h")


def test_an_assignment_without_a_value_is_refused() -> None:
    assert parse_assignments(("a.b=1", "c=x=y")) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(ConfigError, match="Expected key=value"):
        parse_assignments(("dataset.lookback",))


ASIDE = ("replay", "model.processes", "exchange.", "archive.", "limits.")
"""Where candles come from, how many processes share a batch and how long a step may take."""


@pytest.mark.parametrize("knob", list(knobs(recipe("demo"))), ids=lambda knob: knob.path)
def test_the_digest_follows_every_setting_that_decides_a_night_and_no_other(knob: Knob) -> None:
    config = recipe("demo")
    changed = _with(config, knob.path.split("."), f"{knob.value} changed")
    assert config_digest(config) == config_digest(recipe("demo"))
    assert (config_digest(changed) == config_digest(config)) == knob.path.startswith(ASIDE)


def _with(config: Any, path: list[str], value: object) -> Any:
    """A copy in which one setting has that value, whether or not it may."""
    config, (name, *rest) = copy(config), path
    object.__setattr__(config, name, _with(getattr(config, name), rest, value) if rest else value)
    return config


def test_every_setting_reaches_the_code_that_reads_it() -> None:
    """A field that nobody loads from an object, nor names in a text, is a dead knob."""
    read = {
        name
        for package in ("flows", "tasks", "exchange", "storage", "kronos_model")
        for path in (ROOT / package).rglob("*.py")
        for name in _read(ast.parse(path.read_text()))
    }
    owners = {type(owner) for owner in _sections(recipe("demo"))}
    for owner in owners:
        for field in fields(owner):
            assert (owner.__name__, field.name) in read or field.name in read, f"{field.name} is read nowhere"


def _sections(config: Any) -> Iterator[Any]:
    yield config
    for field in fields(config):
        if is_dataclass(getattr(config, field.name)):
            yield from _sections(getattr(config, field.name))


def _read(tree: ast.AST) -> Iterator[str]:
    """Every attribute that is loaded and every text, outside the checks of the settings themselves."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        yield from _read(node)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Pacific/Apia"])
def test_a_day_begins_at_midnight_utc_wherever_the_machine_is(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        try:
            config = configure("demo", start=date(2024, 2, 29), end=date(2024, 3, 1))
            assert (config.start_ms(), config.end_ms()) == (1_709_164_800_000, 1_709_251_200_000)
        finally:
            patch.undo()
            time.tzset()


def test_a_form_offers_the_intervals_that_the_lake_knows() -> None:
    assert get_args(IntervalName) == INTERVALS
    assert TypeAdapter(RecipeName).json_schema()["enum"] == list(RECIPES)


def test_a_recipe_of_one_series_is_the_recipe_over_that_series_under_a_name_of_its_own() -> None:
    name = recipe_of("majors_1h", "um:DOGEUSDT")
    assert name == "majors_1h-um-DOGEUSDT"
    assert TypeAdapter(RecipeName).validate_python(name) == name
    expected = replace(recipe("majors_1h"), recipe=name, series=("um:DOGEUSDT",))
    assert recipe(name) == configure(name, series=["um:DOGEUSDT"]) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "majors_1h-um-DOGE/USDT",
            "Expected a recipe's name or one with a series such as majors_1h-um-DOGEUSDT",
        ),
        ("majors_1h-coin-DOGEUSDT", "expected a market out of spot, um"),
        ("majors-um-DOGEUSDT", "did you mean majors_1h-um-DOGEUSDT?"),
        ("majors-1h", "did you mean majors_1h?"),
    ],
)
def test_a_series_that_cannot_be_is_refused_in_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        recipe(name)


def test_a_recipe_of_one_series_takes_no_other() -> None:
    with pytest.raises(ConfigError, match="which is for um:DOGEUSDT alone, found um:BTCUSDT; leave them out"):
        configure("majors_1h-um-DOGEUSDT", {"series": "um:BTCUSDT"})


def test_paper_1h_is_the_protocol_of_the_paper() -> None:
    config = recipe("paper_1h")
    assert (config.interval, config.dataset.lookback, config.dataset.horizon) == ("1h", 80, 12)
    assert config.dataset.prices_only
    for sampling in (config.evaluation, config.forecast):
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.samples) == (0.6, 0, 0.9, 10)
    assert not config.evaluation.postprocess
