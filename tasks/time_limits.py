"""How long a task may take. Without Prefect, so that settings can be read without it."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["OutOfTime", "TimeLimits"]


class OutOfTime(Exception):  # noqa: N818  # it says what happened
    """A task that took longer than it may; one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeLimits:
    """After how many hours a task is given up. What it has done stays, and the next run goes on from there."""

    dataset_h: float = 2.0
    """Hours to cut the windows."""
    train_h: float = 20.0
    """Hours to train one stage."""
    evaluate_h: float = 6.0
    """Hours to walk forward over the test range."""
    publish_h: float = 1.0
    """Hours to write and upload both repositories."""
    forecast_h: float = 1.0
    """Hours to forecast every series."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0 < (hours := getattr(self, item.name)) < float("inf"):
                raise ValueError(f"{item.name}: expected hours above 0, found {hours}; try {item.default}")
