"""README.md and README.zh-CN.md tell the same: the same commands in the same order, the same sections, no dead links.

Prose, figures and the output that a command printed are not compared.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

_PROGRAMS = {"make", "kronos", "curl", ".venv/bin/kronos", "python", "mlflow", "docker"}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return "".join(path.read_text(encoding="utf-8").split("```")[::2])


def _commands(path: Path) -> list[str]:
    """Every line of a fenced block that begins with a program, without its comment."""
    blocks = path.read_text(encoding="utf-8").split("```")[1::2]
    lines = (line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines())
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.split(" ")[0] in _PROGRAMS]


def _headings(path: Path) -> list[str]:
    return re.findall(r"^#+(?= )", _prose(path), flags=re.MULTILINE)


def test_both_readmes_have_the_same_commands_in_the_same_order() -> None:
    assert len(_commands(README)) >= 10
    assert _commands(CHINESE) == _commands(README)


def test_both_readmes_have_the_same_headings_by_level() -> None:
    assert _headings(CHINESE) == _headings(README)


def test_both_readmes_name_the_same_packages_in_the_same_order() -> None:
    named = re.compile(r"^(\w+/) {2,}", flags=re.MULTILINE)
    assert named.findall(CHINESE.read_text(encoding="utf-8")) == named.findall(
        README.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("path", [README, CHINESE], ids=lambda path: path.name)
def test_what_a_readme_links_to_is_there(path: Path) -> None:
    targets = {target for target, _ in _LINK.findall(_prose(path)) if "://" not in target}
    assert [target for target in sorted(targets) if not (ROOT / target).exists()] == []
