"""The settings of a form: all there are, as their owners define them; what nobody filled in changes nothing."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.config import ConfigError, config_digest, knobs, override
from flows.gc import gc
from flows.monitor import monitor
from flows.nightly import nightly
from flows.recipes import configure, recipe
from flows.site import deploy
from flows.watching import WatchConfig
from kronos_model.evaluation.config import Baseline
from storage.retention import RetentionPolicy
from tests.support.forms import form_fields, form_schema
from tests.support.nights import nested
from tests.support.terminal import closed_url

ELSEWHERE = {"recipe", "series", "interval", "start", "end", "duration_s", "csv", "json"}
RELATED = {
    "dataset.train_share": "train_share and validation_share: expected",
    "dataset.validation_share": "train_share and validation_share: expected",
    "gate.coverage_low": "coverage_low and coverage_high must be ascending",
    "gate.coverage_high": "coverage_low and coverage_high must be ascending",
}
EXAMPLES = {
    nightly: recipe("demo"),
    gc: RetentionPolicy(),
    monitor: WatchConfig(series=("um:DOGEUSDT",)),
}


@pytest.mark.parametrize("flow", EXAMPLES, ids=lambda flow: str(flow.name))
def test_the_form_has_every_setting_in_order_with_its_meaning(flow: Any) -> None:
    told = {name: one["description"] for name, one in form_fields(flow).items()}
    meant = {
        knob.path: " ".join(knob.help.split()) for knob in knobs(EXAMPLES[flow]) if knob.path not in ELSEWHERE
    }
    assert list(told.items()) == list(meant.items())


def test_numbers_have_bounds_and_choices_are_chosen() -> None:
    form = form_fields(nightly)
    assert (form["dataset.lookback"]["type"], form["dataset.lookback"]["minimum"]) == ("integer", 2)
    assert form["predictor.learning_rate"]["exclusiveMinimum"] == 0
    assert (form["evaluation.top_p"]["exclusiveMinimum"], form["evaluation.top_p"]["maximum"]) == (0, 1)
    assert form["predictor.beta1"]["exclusiveMaximum"] == 1
    assert form["predictor.precision"]["enum"] == ["auto", "float32", "bfloat16"]
    assert form["evaluation.baselines"]["type"] == "array"
    assert form["evaluation.baselines"]["items"]["enum"] == list(get_args(Baseline))
    assert re.search(form["exchange.um_url"]["pattern"], "https://fapi.binance.com")
    assert not re.search(form["exchange.um_url"]["pattern"], "fapi.binance.com")


@pytest.mark.parametrize("flow", EXAMPLES, ids=lambda flow: str(flow.name))
def test_a_bound_is_its_owners(flow: Any) -> None:
    """What a form refuses is refused by the program, whatever else is set, and the bound itself is as it says."""
    for path, one in form_fields(flow).items():
        step = 1 if {"type": "integer"} in one.get("anyOf", [{"type": one.get("type")}]) else 1e-9
        for name, sign in {
            "minimum": -1,
            "exclusiveMinimum": -1,
            "maximum": 1,
            "exclusiveMaximum": 1,
        }.items():
            if name not in one:
                continue
            outside, inside = (0, -step) if name.startswith("exclusive") else (step, 0)
            try:
                override(EXAMPLES[flow], {path: one[name] + sign * inside})
            except ConfigError as error:
                assert path in RELATED
                assert RELATED[path] in str(error)  # noqa: PT017  (most bounds are taken)
            with pytest.raises(ConfigError):
                override(EXAMPLES[flow], {path: one[name] + sign * outside})


def test_bounds_that_hang_on_another_setting_are_not_the_forms() -> None:
    form = form_fields(nightly)
    assert (form["gate.coverage_high"]["exclusiveMinimum"], form["gate.coverage_high"]["maximum"]) == (0, 1)
    assert (form["gate.coverage_low"]["minimum"], form["gate.coverage_low"]["exclusiveMaximum"]) == (0, 1)
    assert form["dataset.train_share"]["exclusiveMaximum"] == 1


def test_what_nobody_filled_in_changes_nothing() -> None:
    """As the browser sends it: a section left closed, or a switch left alone, is null; other fields are not there."""
    sent = {
        "exchange": None,
        "tokenizer": None,
        "dataset": {"purge": None, "lookback": 80},
        "predictor": {"compile": None, "recompute": None, "epochs": 3, "patience": None},
    }
    assert validate({"settings": sent}, form_schema(nightly)) == []
    chosen = configure("demo", sent)
    plain = {"dataset.lookback": 80, "predictor.epochs": 3, "predictor.patience": ""}
    assert config_digest(chosen) == config_digest(configure("demo", plain))
    assert chosen.predictor.patience is None, "None is a value of a setting that can be empty"


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset.lokback": 80},
        {"lookback": 80},
        {"dataset.lookback": 1},
        {"dataset.train_share": 70},
        {"gate.draws": 10},
        {"seed": -1},
        {"evaluation.baselines": ["crystal_ball"]},
        {"exchange.um_url": "fapi.binance.com"},
        {"predictor.patience": 0},
        {"predictor.precision": "float8"},
    ],
)
def test_the_form_and_the_program_refuse_the_same(settings: dict[str, Any]) -> None:
    assert validate({"settings": nested(settings)}, form_schema(nightly)) != []
    with pytest.raises(ConfigError):
        configure("demo", settings)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{recipe: demo, settings: {dataset.lookback: 80}}", "settings: .*'dataset.lookback' was unexpected"),
        ("{recipe: demo, settings: {dataset: {lookback: 1}}}", "settings.dataset.lookback: 1 is less than"),
        ("{recipe: doge}", "recipe: 'doge' is not one of"),
    ],
)
def test_prefect_yaml_is_held_to_the_form_before_anything_is_deployed(
    parameters: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "deployments:",
        "- name: nightly",
        "  entrypoint: flows.nightly.nightly",
        f"  parameters: {parameters}",
    ]
    (tmp_path / "prefect.yaml").write_text("\n".join(lines))
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", f"{closed_url()}/api")
    with pytest.raises(ConfigError, match=f"parameters of nightly in .* found {words}"):
        deploy.deploy()


def test_a_form_is_small() -> None:
    assert len(json.dumps(form_schema(nightly))) < 40_000
