"""docs/images/architecture.svg shows the contracts and the imports that there are now."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"


def test_the_picture_is_what_the_imports_would_draw() -> None:
    fresh = runpy.run_path(str(ROOT / "docs" / "make_architecture.py"))["picture"]()
    assert PICTURE.read_text(encoding="utf-8") == fresh, "run `make docs`"


def test_the_picture_is_well_formed_and_names_every_package() -> None:
    texts = [text.text or "" for text in ElementTree.parse(PICTURE).iter() if text.tag.endswith("text")]
    for package in ("flows", "tasks", "service", "exchange", "storage", "kronos_model"):
        assert f"{package}/" in texts
