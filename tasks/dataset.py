"""From candles in the lake to windows on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prefect import task

from kronos_model.clipping import clipped_shares
from kronos_model.features import calendar_stamps, fit_state
from storage.dataset import BuiltDataset, DatasetConfig, build_dataset
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey
from tasks.policies import IDEMPOTENT
from tasks.progress import progress_bar

__all__ = ["build"]


@task(name="dataset", task_run_name="dataset", **IDEMPOTENT)
def build(
    home: Home, keys: Sequence[SeriesKey], config: DatasetConfig, *, start_ms: int | None, end_ms: int | None
) -> BuiltDataset:
    """Cut the windows of `keys`; an identical dataset that is already there is returned as it is."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    candles = {key: lake.read(key, start_ms, end_ms) for key in keys}
    fit = partial(fit_state, config.normaliser)
    with progress_bar("dataset") as progress:
        return build_dataset(
            candles,
            config,
            home.datasets,
            stamp=calendar_stamps,
            fit=fit,
            clipped=clipped_shares,
            stale=[key for key in keys if ledger.tail(key) and end_ms is None],
            progress=progress,
        )
