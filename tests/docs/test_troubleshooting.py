"""Every sentence that docs/troubleshooting.md quotes is one that the code can say."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")

_HOLE = "\0"  # what an f-string fills in


def _sentences() -> list[str]:
    """The first cell of every row of a table, without its head."""
    rows = re.findall(r"^\| (.*?) \| .* \| .* \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [row for row in rows if row != "it says"]


@cache
def _said() -> tuple[str, ...]:
    """Every text in the packages, with holes for what an f-string fills in."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [_with_holes(node) for node in nodes if isinstance(node, ast.JoinedStr)]
    return (*plain, *filled)


def _with_holes(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else _HOLE for part in node.values)


def test_the_page_has_many_sentences_and_none_twice() -> None:
    sentences = _sentences()
    assert len(sentences) >= 30
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("sentence", _sentences())
def test_a_quoted_sentence_is_in_the_code(sentence: str) -> None:
    fixed = [re.escape(part.strip(" ")) for part in sentence.split("...")]
    pattern = re.compile(".*?".join(fixed), flags=re.DOTALL)
    assert any(pattern.search(text) for text in _said()), f"no text in the code is like {sentence!r}"
