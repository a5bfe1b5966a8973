"""docs/recipes.md says what the recipes and their settings are now."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_recipes_is_what_the_code_would_write() -> None:
    fresh = runpy.run_path(str(ROOT / "docs" / "make_recipes.py"))["page"]()
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == fresh, "run `make docs`"
