"""Shared fixtures. Nothing here needs the network; real candles are optional and skipped with a reason."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Files that start servers, processes, browsers or nights, or take seconds each: `make check` leaves them out.
WHOLE = (
    *("drills", "flows", "mutants", "service", "tasks"),
    "architecture/test_contracts.py",
    *(f"exchange/test_{name}.py" for name in ("archive", "archive_sync", "drills", "inventory", "monitor")),
    *(f"exchange/test_{name}.py" for name in ("replay_candles", "sync")),
    *(f"kronos_model/test_{name}.py" for name in ("accounting", "adapters", "cache", "champion_tag", "hub")),
    *(f"kronos_model/test_{name}.py" for name in ("launch", "parity", "publish_faults", "train")),
    "storage/test_object_home.py",
)
PLAIN = (
    "flows/test_config.py",
)  # in one of those folders all the same, and imports neither Prefect nor MLflow

# Prefect, MLflow and torch read these when they are first imported, so they are set before any test module is. Every
# process of `pytest -n` has a home of its own for Prefect. Tiny models run fastest on one thread, and reproducibly.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="kronos-tests-prefect-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in ("KRONOS_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is whole, and keep together what shares a server or a night, so that it is made once.

    A process of `pytest -n` takes file after file, the whole ones first: a long one that is last keeps one alone.
    """
    nights = {item.path for item in items if "published" in _fixtures(item)}
    for item in items:
        if _is_whole(item):
            item.add_marker("whole")
        together = "published" if item.path in nights else item.path.stem
        item.add_marker(pytest.mark.xdist_group(together))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("whole") is None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What is left out is not imported either: that would take longer than to run the rest."""
    left_out = "not whole" in config.option.markexpr and collection_path.suffix == ".py"
    return True if left_out and _is_named(collection_path) else None


def _is_whole(item: pytest.Item) -> bool:
    return "prefect_api" in _fixtures(item) or _is_named(item.path)


def _is_named(file: Path) -> bool:
    path = file.relative_to(Path(__file__).parent)
    return str(path) not in PLAIN and not {str(one) for one in (path, *path.parents)}.isdisjoint(WHOLE)


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real Binance klines as Parquet, beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real candles not found at {SHARED_DATA}; this test needs them")
    return SHARED_DATA


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server with a database of its own, without the heartbeat that makes a flow take a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from tests.support.databases import lend_prefect

    def migrated() -> str:
        folder = tempfile.mkdtemp()
        lend_prefect(Path(folder) / "prefect-test.db")
        return folder

    with (
        mock.patch("prefect.testing.utilities.mkdtemp", migrated),
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
