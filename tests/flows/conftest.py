"""What several flow tests share."""

from pathlib import Path

import pytest

from tests.support.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """`kronos` over a fresh home; give it another by setting its `home`."""
    return Terminal(tmp_path / "home", capsys)
