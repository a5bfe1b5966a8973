"""The scores of live forecasts, brought up to date by every night."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from prefect import task

from kronos_model.evaluation.stored_scores import score_quantiles
from storage.layout import Home
from storage.scoreboard import Scoreboard, score_due
from tasks.live_record import Live, live_board
from tasks.policies import IDEMPOTENT

__all__ = ["score_live"]

logger = logging.getLogger(__name__)


@task(name="score live forecasts", task_run_name="score live forecasts", **IDEMPOTENT)
def score_live(home: Home, recipe: str, *, under_way: Mapping[str, Path] | None = None) -> Live:
    """What has become due scored and kept, and the record; drift is a warning in the log."""
    score_due(Scoreboard(home, score_quantiles))
    live = live_board(home, recipe, under_way=under_way)
    for warning in live.warnings:
        logger.warning("%s", warning)
    return live
