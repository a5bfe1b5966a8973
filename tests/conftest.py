"""Shared fixtures. Nothing here needs the network; real candles are optional and skipped with a reason."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Prefect and MLflow read these when they are first imported, so they are set before any test module is.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="kronos-tests-prefect-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in ("KRONOS_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real Binance klines as Parquet, beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real candles not found at {SHARED_DATA}; this test needs them")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny models run fastest on one thread, and reproducibly."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server with a database of its own, without the heartbeat that makes a flow take a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
