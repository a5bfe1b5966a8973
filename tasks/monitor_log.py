"""What a monitor says, as lines of a log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from exchange.monitor_state import MonitorState

__all__ = ["LogLines", "clock_text", "number_text"]

logger = logging.getLogger(__name__)


class LogLines:
    """One line for every closed candle and every change of a connection."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def __call__(self, state: MonitorState) -> None:
        """Log what is new."""
        for one in state.series:
            connection, closed_ms = self._seen.get(str(one.key), ("", 0))
            if one.connection != connection:
                logger.info("%s: %s", one.key, one.connection)
            if one.last is not None and one.last.close_ms > closed_ms:
                closed_ms = one.last.close_ms
                told = (one.key, clock_text(closed_ms + 1), one.last.close, number_text(one.last.volume))
                logger.info("%s: closed %s at %s, volume %s", *told)
            self._seen[str(one.key)] = (one.connection, closed_ms)


def clock_text(ms: int) -> str:
    """A time in ms as `2026-11-21 13:00:00`, UTC."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def number_text(value: float) -> str:
    """Two decimals from 100 on, six digits below."""
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.6g}"
