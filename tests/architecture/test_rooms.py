"""Every package opens with a README of one screen that names each of its modules, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")
FOLDERS = sorted({path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")})
_SCREEN = 45  # lines
_MODULE = re.compile(r"`([a-z_0-9]+\.py)`")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_readme_names_every_module_and_says_where_to_begin(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    modules = {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
    assert set(_MODULE.findall(text)) == modules
    assert "egin with" in text
    assert len(text.splitlines()) <= _SCREEN
    inner = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert inner <= set(re.findall(r"\[([a-z_]+)/\]\(\1/README\.md\)", text))


@pytest.mark.parametrize("name", ["flows", "flows/cli", "flows/site", "tasks", "tasks/reports"])
def test_a_house_has_no_more_rooms_than_a_stranger_can_keep_in_mind(name: str) -> None:
    assert len([path for path in (ROOT / name).iterdir() if path.suffix == ".py"]) <= 22


def test_no_file_is_longer_than_it_can_be_read_at_once() -> None:
    folders = (*PACKAGES, "benchmarks")
    lines = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for name in folders
        for path in (ROOT / name).rglob("*.py")
    }
    long = {path: count for path, count in lines.items() if count > 400}
    command_line = {
        path: count
        for path, count in lines.items()
        if path.parts[:2] in (("flows", "cli"), ("flows", "site"))
    }
    assert long == {}
    assert {path: count for path, count in command_line.items() if count > 300} == {}
