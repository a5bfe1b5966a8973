"""What several flow tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # `make check` comes by here and needs none of them, nor Prefect
    from tests.support.loopback_hub import LoopbackHub
    from tests.support.publishing import PublishedNight
    from tests.support.terminal import Terminal


@pytest.fixture
def terminal(prefect_api: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """`kronos` over a fresh home; give it another by setting its `home`."""
    from tests.support.terminal import Terminal

    return Terminal(tmp_path / "home", capsys)


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    from tests.support.loopback_hub import LoopbackHub

    with LoopbackHub(organisations=("quants",)) as hub:
        yield hub


@pytest.fixture(scope="session")
def published(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> PublishedNight:
    """One finished night for all tests: candles, champion, MLflow run, two repositories on `hub`."""
    from tests.support.publishing import publish_a_night

    return publish_a_night(tmp_path_factory.mktemp("published"), hub)
