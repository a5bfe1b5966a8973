"""A progress bar for the terminal, a log line for everything else."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["IngestProgress", "ingest_progress", "progress_bar"]

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `report(done, total)`: a bar where stderr is a terminal, else a log line every 15 s."""
    if not sys.stderr.isatty():
        yield _log_lines(label)
        return
    with Progress(*_columns(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total or None)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _log_lines(label: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_EVERY_S:
            last = time.monotonic()
            logger.info("%s: %s of %s", label, f"{done:,}", f"{total:,}")

    return report


class IngestProgress:
    """How far many series are, together and each that is under way, in a log line every 15 s.

    Reports may come from any thread.
    """

    def __init__(self, total: int, weight: Callable[[], str]) -> None:
        self._total = total
        self._weight = weight
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, int] = {}
        self._finished = 0
        self._rows = 0
        self._began = self._told = time.monotonic()
        self._stopped = False

    @contextmanager
    def of(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Yield `report(done, total)` of one series; it raises KeyboardInterrupt once `stop` was called."""

        def report(done: int, total: int) -> None:
            if self._stopped:
                raise KeyboardInterrupt
            self._note(label, done, total)

        self._note(label, 0, 0)
        try:
            yield report
        finally:
            with self._lock:
                self._under_way.pop(label)
                self._finished += 1
            self._show()

    def stop(self) -> None:
        """End what is under way at its next report."""
        self._stopped = True

    @property
    def line(self) -> str:
        """`3 of 50 series, 1,234,567 candles, 210,000 candles/s, weight um 240 of 2,400, 4 min left`."""
        with self._lock:
            seconds = max(time.monotonic() - self._began, 1e-3)
            finished, rows, sizes = self._finished, self._rows, list(self._sizes.values())
            empty = finished + len(self._under_way) - len(sizes)
        # Those that have not begun are taken to be as long as the others.
        expected = sum(sizes) / len(sizes) * (self._total - empty) if sizes else 0
        share = rows / expected if expected else 0.0
        left = f", {_duration(seconds / share - seconds)} left" if 0.02 < share < 1 else ""
        weight = f", weight {used}" if (used := self._weight()) else ""
        speed = f"{rows / seconds:,.0f} candles/s"
        return f"{finished} of {self._total} series, {rows:,} candles, {speed}{weight}{left}"

    def _note(self, label: str, done: int, total: int) -> None:
        with self._lock:
            self._rows += max(0, done - self._under_way.get(label, (0, 0))[0])
            self._under_way[label] = (done, total)
            if total:
                self._sizes[label] = total
        self._show()

    def _show(self) -> None:
        if (now := time.monotonic()) - self._told >= _LOG_EVERY_S:
            self._told = now
            logger.info("%s", self.line)


class _DrawnProgress(IngestProgress):
    """One bar for each series under way, and a line for all."""

    def __init__(self, total: int, weight: Callable[[], str], drawn: Progress) -> None:
        super().__init__(total, weight)
        self._drawn = drawn
        self._bars: dict[str, TaskID] = {}

    def __rich__(self) -> Group:
        return Group(self._drawn, Text(self.line))

    def _show(self) -> None:
        with self._lock:
            for label in [label for label in self._bars if label not in self._under_way]:
                self._drawn.remove_task(self._bars.pop(label))
            for label, (done, total) in self._under_way.items():
                if label not in self._bars:
                    self._bars[label] = self._drawn.add_task(label, total=None)
                self._drawn.update(self._bars[label], completed=done, total=total or None)


@contextmanager
def ingest_progress(total: int, *, weight: Callable[[], str]) -> Iterator[IngestProgress]:
    """The progress of an ingest of so many series: bars where stderr is a terminal, else log lines.

    `weight` says how much request weight is used.
    """
    if not sys.stderr.isatty():
        yield IngestProgress(total, weight)
        return
    view = _DrawnProgress(total, weight, Progress(*_columns()))
    with Live(view, console=Console(stderr=True), refresh_per_second=4):
        yield view


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
