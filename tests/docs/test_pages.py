"""Every file that a page of the documentation links to, or shows, is there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"

_LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    prose = "".join(page.read_text(encoding="utf-8").split("```")[::2])
    assert [link for link in _LINK.findall(prose) if not (page.parent / link).exists()] == []


def test_every_picture_is_shown_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert [path.name for path in (DOCS / "images").iterdir() if path.name not in shown] == []
