"""Shared fixtures. Nothing here needs the network; real candles are optional and skipped with a reason."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
