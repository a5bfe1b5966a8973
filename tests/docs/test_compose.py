"""deploy/ is checked without a Docker engine: compose.yaml by the Compose specification's own schema, and by sense."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft7Validator

from flows.cli.program import cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCHEMA = "builtin_schemas/vendor/compose-spec.json"

_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)")


def _compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_compose_file_fits_the_compose_specification(name: str) -> None:
    schema = json.loads(files("check_jsonschema").joinpath(SCHEMA).read_text(encoding="utf-8"))
    errors = [error.message for error in Draft7Validator(schema).iter_errors(_compose(name))]
    assert errors == []


def test_every_service_volume_and_condition_that_is_named_is_there() -> None:
    compose = _compose()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in compose["services"][other]
    assert set(_compose("compose.gpu.yaml")["services"]) <= set(compose["services"])


def test_secrets_come_from_the_environment_and_the_example_names_all_of_them() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    example = (DEPLOY / "example.env").read_text(encoding="utf-8")
    assert set(_VARIABLE.findall(text)) == set(re.findall(r"^(\w+)=$", example, flags=re.MULTILINE))
    for line in text.splitlines():
        if re.search(r"\b\w*(PASSWORD|TOKEN)\w*: ", line):
            assert "${" in line


def test_nothing_is_published_beyond_the_loopback() -> None:
    ports = [port for service in _compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_command_of_ours_is_one_that_the_program_has() -> None:
    commands = [service["command"] for service in _compose()["services"].values() if "command" in service]
    ours = [command[1] for command in commands if command[0] == "kronos"]
    assert sorted(ours) == ["deploy", "serve", "worker"]
    for name in ours:
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert copied == {line.removeprefix("!") for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert packages is not None
    assert set(json.loads(packages[1])) <= copied


def test_the_image_installs_extras_that_the_project_has() -> None:
    installed = re.search(r"'\.\[([\w,]+)\]'", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert installed is not None
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in installed[1].split(","):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), f"no extra {extra}"
