"""What a monitor shows: a table that lives in a terminal, lines of a log elsewhere; and how it stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from exchange.monitor_state import MonitorState, SeriesState

__all__ = ["LogLines", "live_table", "stop_on_signals", "view"]

WIDE = 130  # characters; narrower terminals get fewer columns
_WIDE_COLUMNS = ("24 h low to high", "24 h volume", "new candles")
_COLOURS = {"streaming": "green", "polling": "yellow", "connecting": "yellow", "stopped": "dim"}

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
                volume = _number(one.last.volume)
                logger.info(
                    "%s: closed %s at %s, volume %s", one.key, _clock(closed_ms + 1), one.last.close, volume
                )
            self._seen[str(one.key)] = (one.connection, closed_ms)


@contextmanager
def view(console: Console | None = None) -> Iterator[Callable[[MonitorState], object]]:
    """Something to tell each state to: a live table in a terminal, log lines in a pipe or a file."""
    console = console or Console()
    if not console.is_terminal:
        yield LogLines()
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda state: live.update(live_table(state, wide=console.width >= WIDE))


def live_table(state: MonitorState, *, wide: bool = True) -> Group:
    """All series, the exchange's clock, and what went wrong last; three columns fewer if not `wide`."""
    title = (
        f"{_clock(state.exchange_ms)} UTC at the exchange"
        if state.exchange_ms
        else "waiting for the exchange"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("series", no_wrap=True)
    for name in ("closed", "close", "now", "24 h %", *(_WIDE_COLUMNS if wide else ()), "closes in"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for one in state.series:
        table.add_row(*_row(one, state.exchange_ms, wide=wide))
    if not state.last_error:
        return Group(table)
    return Group(table, Text(f"last trouble: {state.last_error}", style="yellow"))


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


def _row(one: SeriesState, exchange_ms: int, *, wide: bool) -> list[str | Text]:
    last, forming, ticker = one.last, one.forming, one.ticker
    now = Text(_number(forming.close)) if forming else Text()
    if ticker is not None and forming is None:  # as old as the ticker may be
        now = Text(_number(ticker.last), style="dim")
    day = Text()
    if ticker is not None:
        day = Text(f"{ticker.change_percent:+.2f}", style="green" if ticker.change_percent >= 0 else "red")
    more: list[str | Text] = []
    if wide:
        more.append(f"{_number(ticker.low)} to {_number(ticker.high)}" if ticker else "")
        more.append(f"{ticker.quote_volume:,.0f}" if ticker else "")
        more.append(f"{one.added:,}")
    return [
        str(one.key),
        _clock(last.close_ms + 1)[11 : 19 if one.key.interval.name == "1s" else 16] if last else "",
        _number(last.close) if last else "",
        now,
        day,
        *more,
        "" if one.next_close_ms is None else _span(one.next_close_ms + 1 - exchange_ms),
        Text(one.connection, style=_COLOURS[one.connection]),
    ]


def _span(ms: int) -> str:
    minutes, seconds = divmod(max(0, ms) // 1000, 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    )


def _clock(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.6g}"
