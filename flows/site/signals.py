"""Ctrl-C and SIGTERM as an event."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["stop_on_signals"]


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[list[str]]:
    """Set `stop` at Ctrl-C or SIGTERM, once; a second one acts as usual. Yields the names of what came."""
    came: list[str] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number).name)
        stop.set()
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield came
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
