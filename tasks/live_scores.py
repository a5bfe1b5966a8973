"""Live scores as a task of a night."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from prefect import task

from storage.layout import Home
from tasks.live_board import Live, live_board
from tasks.policies import IDEMPOTENT

__all__ = ["Live", "live_board", "score_live"]

logger = logging.getLogger(__name__)


@task(name="score live forecasts", task_run_name="score live forecasts", **IDEMPOTENT)
def score_live(home: Home, recipe: str, *, under_way: Mapping[str, Path] | None = None) -> Live:
    """The board brought up to date; drift is a warning in the log."""
    live = live_board(home, recipe, under_way=under_way)
    for warning in live.warnings:
        logger.warning("%s", warning)
    return live
