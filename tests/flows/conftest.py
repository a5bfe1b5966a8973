"""What several flow tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.publishing import PublishedNight, publish_a_night
from tests.support.terminal import Terminal


@pytest.fixture
def terminal(prefect_api: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """`kronos` over a fresh home; give it another by setting its `home`."""
    return Terminal(tmp_path / "home", capsys)


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(organisations=("quants",)) as hub:
        yield hub


@pytest.fixture(scope="session")
def published(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> PublishedNight:
    """One finished night for all tests: candles, champion, MLflow run, two repositories on `hub`."""
    return publish_a_night(tmp_path_factory.mktemp("published"), hub)
