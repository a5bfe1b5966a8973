"""Where windows may start, and which split each one belongs to.

A window is L = lookback + horizon consecutive candles of one series. Times are open times in ms since the
epoch; N windows, pooled over all series.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SPLITS",
    "Split",
    "SplitRule",
    "Splits",
    "find_segments",
    "pool_windows",
    "rows_needed",
    "split_windows",
]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """How pooled windows are cut by time."""

    length: int  # candles of a window
    step_ms: int  # of a candle
    train_share: float  # of the windows, before the validation border
    validation_share: float  # between the validation and the test border
    purge: bool  # leave out the windows that start less than one window length after a border

    def borders(self, windows: int) -> tuple[int, int]:
        """Positions in time order where validation and test begin."""
        return int(windows * self.train_share), int(windows * (self.train_share + self.validation_share))


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Pooled windows, cut."""

    windows: dict[Split, NDArray[np.int32]]  # (N, 2) each: series index and start row, in order of start time
    validation_from_ms: int  # border; no statistic may be fitted on a candle from here on
    test_from_ms: int


def find_segments(open_time: NDArray[np.int64], step_ms: int) -> list[tuple[int, int]]:
    """Row ranges [first, end) without a hole inside."""
    holes = np.flatnonzero(np.diff(open_time) != step_ms) + 1
    edges = [0, *holes.tolist(), len(open_time)]
    return list(pairwise(edges))


def pool_windows(
    open_times: Sequence[NDArray[np.int64]], segments: Sequence[Sequence[tuple[int, int]]], length: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All windows of all series as (N, 2) and their start times (N,), by start time, then series."""
    pairs, starts = [np.empty((0, 2), np.int32)], [np.empty(0, np.int64)]
    for index, (open_time, parts) in enumerate(zip(open_times, segments, strict=True)):
        for first, end in parts:
            rows = np.arange(first, end - length + 1, dtype=np.int32)  # empty where the segment is too short
            pairs.append(np.stack([np.full_like(rows, index), rows], axis=1))
            starts.append(open_time[rows])
    pooled, start_times = np.concatenate(pairs), np.concatenate(starts)
    order = np.argsort(start_times, kind="stable")
    return pooled[order], start_times[order]


def split_windows(pooled: NDArray[np.int32], start_times: NDArray[np.int64], rule: SplitRule) -> Splits:
    """Cut at two start times; windows that start together stay together. Needs at least one window."""
    validation_at, test_at = rule.borders(len(pooled))
    validation_from, test_from = int(start_times[validation_at]), int(start_times[test_at])
    gap = rule.length * rule.step_ms if rule.purge else 0
    before_test = start_times < test_from
    return Splits(
        windows={
            "train": pooled[start_times < validation_from],
            "validation": pooled[(start_times >= validation_from + gap) & before_test],
            "test": pooled[start_times >= test_from + gap],
        },
        validation_from_ms=validation_from,
        test_from_ms=test_from,
    )


def rows_needed(rule: SplitRule) -> int:
    """Fewest rows of one gapless series that put a window into every split."""
    gap = rule.length if rule.purge else 0

    def fills(windows: int) -> bool:
        validation_at, test_at = rule.borders(windows)
        return validation_at > 0 and test_at - validation_at > gap and windows - test_at > gap

    return next(windows for windows in count(1) if fills(windows)) + rule.length - 1
