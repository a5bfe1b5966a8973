"""How long a task may take. Without Prefect, so that settings can be read without it."""

from __future__ import annotations

from typing import Annotated

from kronos_model.settings import Bounds, settings

__all__ = ["OutOfTime", "TimeLimits"]


class OutOfTime(Exception):  # noqa: N818  # it says what happened
    """A task that took longer than it may; one sentence."""


Hours = Annotated[float, Bounds(gt=0, unit="hours")]


@settings
class TimeLimits:
    """After how many hours a task is given up. What it has done stays, and the next run goes on from there."""

    dataset_h: Hours = 2.0
    """Hours to cut the windows."""
    train_h: Hours = 20.0
    """Hours to train one stage."""
    evaluate_h: Hours = 6.0
    """Hours to walk forward over the test range."""
    publish_h: Hours = 1.0
    """Hours to write and upload both repositories."""
    forecast_h: Hours = 1.0
    """Hours to forecast every series."""
