"""The registered model of a recipe: its versions, each with the weights themselves, and the aliases that name them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_model.outlook import QUANTILES, quantile_label
from storage.layout import Home
from tasks.refs import RunRef
from tasks.tracking.store import open_client, prepare_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

__all__ = [
    "RegisteredVersion",
    "alias_version",
    "move_alias",
    "register_model",
    "registered_name",
    "registered_versions",
]

_DIGEST = "kronos.digest"
_SERVING = ("mlflow", "torch", "numpy", "pandas", "polars", "scipy", "safetensors", "huggingface-hub")


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version of a recipe's registered model: whose weights it holds, and the run that made them."""

    number: str
    run_id: str
    digest: str  # tokenizer's and predictor's, as the folder of a kept model is named


def registered_name(recipe: str) -> str:
    """The registered model of a recipe, as in `models:/kronos-doge_1h@champion`."""
    return f"kronos-{recipe}"


def register_model(
    home: Home,
    run: RunRef,
    recipe: str,
    *,
    digest: str,
    parts: Mapping[str, Path],
    sampling: Mapping[str, float],
    example: Mapping[str, Any],
    tags: Mapping[str, str],
) -> RegisteredVersion:
    """The version that holds these weights as this run made them; registered once, its tags brought up to date.

    `parts` are the folders of tokenizer and predictor, `example` is a small table of candles by column, `sampling`
    the defaults of the parameters.
    """
    from mlflow.entities import LoggedModelOutput

    client, name = open_client(prepare_store(home)), registered_name(recipe)
    tags = {_DIGEST: digest, **tags}
    for known in registered_versions(home, recipe):
        if (known.run_id, known.digest) == (run.run_id, digest):
            for key, value in tags.items():
                client.set_model_version_tag(name, known.number, key, value)
            return known
    model = client.create_logged_model(
        run.experiment_id, name=name, source_run_id=run.run_id, tags=dict(tags), model_type="forecaster"
    )
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "model"
        _save_pyfunc(draft, parts, sampling, example, run_id=run.run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(draft))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    _registered_model(client, name, recipe)
    made = client.create_model_version(
        name, model.artifact_location, run.run_id, tags=dict(tags), model_id=model.model_id
    )
    return _registered(made)


def registered_versions(home: Home, recipe: str) -> list[RegisteredVersion]:
    """All versions of a recipe's model, newest first; none before the first night."""
    found = open_client(prepare_store(home)).search_model_versions(f"name = '{registered_name(recipe)}'")
    return sorted(map(_registered, found), key=lambda one: -int(one.number))


def alias_version(home: Home, recipe: str, alias: str) -> RegisteredVersion | None:
    """The version an alias names; None where it names none."""
    client, name = open_client(prepare_store(home)), registered_name(recipe)
    numbers = {
        known: number for model in _models_named(client, name) for known, number in model.aliases.items()
    }
    return _registered(client.get_model_version(name, numbers[alias])) if alias in numbers else None


def move_alias(home: Home, recipe: str, alias: str, number: str | None) -> None:
    """Make an alias name this version; None takes it away."""
    client, name = open_client(prepare_store(home)), registered_name(recipe)
    if number is not None:
        client.set_registered_model_alias(name, alias, number)
    elif _models_named(client, name):
        client.delete_registered_model_alias(name, alias)


def _save_pyfunc(
    target: Path,
    parts: Mapping[str, Path],
    sampling: Mapping[str, float],
    example: Mapping[str, Any],
    *,
    run_id: str,
    model_id: str,
) -> None:
    """Write the model as MLflow's pyfunc format has it: code as files, weights as safetensors, no pickle."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    import kronos_model
    import storage

    described = Model(artifact_path=target.name, run_id=run_id, model_id=model_id)
    pyfunc.save_model(
        target,
        mlflow_model=described,
        python_model=str(Path(__file__).parents[1] / "pyfunc_model.py"),
        artifacts={part: str(folder) for part, folder in parts.items()},
        code_paths=[str(Path(str(package.__file__)).parent) for package in (kronos_model, storage)],
        signature=_signature(sampling),
        input_example=pd.DataFrame(example),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _SERVING],
    )


def _signature(sampling: Mapping[str, float]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    told = ("mean", "probability_up", "expected_return", "volatility", *map(quantile_label, QUANTILES))
    key = [ColSpec("string", "series"), ColSpec("datetime", "open_time")]
    prices = [ColSpec("double", name) for name in ("open", "high", "low", "close", "volume")]
    numbers = [ColSpec("double", name) for name in told]
    defaults = {
        name: ParamSpec(name, "double" if isinstance(value, float) else "long", value)
        for name, value in sampling.items()
    }
    return ModelSignature(
        inputs=Schema([*key, *prices, ColSpec("double", "amount", required=False)]),
        outputs=Schema([*key, ColSpec("long", "step"), *numbers]),
        params=ParamSchema(list(defaults.values())),
    )


def _registered_model(client: MlflowClient, name: str, recipe: str) -> None:
    """Make the registered model where there is none; another process may be faster."""
    from mlflow.exceptions import MlflowException

    if _models_named(client, name):
        return
    said = f"Kronos fine-tuned by recipe {recipe}: `champion` serves, `challenger` is the newest that was judged."
    try:
        client.create_registered_model(name, tags={"kronos.recipe": recipe}, description=said)
    except MlflowException:
        if not _models_named(client, name):
            raise


def _models_named(client: MlflowClient, name: str) -> list[Any]:
    return list(client.search_registered_models(f"name = '{name}'"))


def _registered(found: ModelVersion) -> RegisteredVersion:
    return RegisteredVersion(
        number=str(found.version), run_id=found.run_id or "", digest=found.tags.get(_DIGEST, "")
    )
