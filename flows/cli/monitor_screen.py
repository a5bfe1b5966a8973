"""`kronos monitor`, without Prefect: a table that lives in a terminal, lines of a log elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from exchange.monitor_state import MonitorState, SeriesState
from flows.site.signals import stop_on_signals
from flows.watching import WatchConfig
from storage.layout import Home
from tasks.monitor import monitor as monitor_task
from tasks.monitor import rehearsed
from tasks.monitor_log import LogLines, clock_text, number_text

__all__ = ["live_table", "view", "watch"]

WIDE = 130  # characters; narrower terminals get fewer columns
_WIDE_COLUMNS = ("24 h low to high", "24 h volume", "new candles")
_COLOURS = {"streaming": "green", "polling": "yellow", "connecting": "yellow", "stopped": "dim"}


def watch(home: Home, config: WatchConfig) -> MonitorState:
    """Keep series up to date in a terminal, until Ctrl-C or SIGTERM."""
    keys, stop, console = config.keys(), threading.Event(), Console(soft_wrap=True)
    with (
        home.writing("monitor"),
        rehearsed(config.replay, keys, config.exchange, config.stream, speed=config.speed) as places,
        stop_on_signals(stop) as signals,
        view() as on_update,
    ):
        state: MonitorState = monitor_task.fn(
            home, keys, *places, config.monitor, on_update=on_update, stop=stop, **config.ends()
        )
    why = f"by {signals[0]}" if signals else "at the end of its time"
    added = sum(one.added for one in state.series)
    console.print(
        f"Stopped {why}: {added:,} new candles of {len(keys)} series are in {home.lake}.", highlight=False
    )
    return state


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
        f"{clock_text(state.exchange_ms)} UTC at the exchange"
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


def _row(one: SeriesState, exchange_ms: int, *, wide: bool) -> list[str | Text]:
    last, forming, ticker = one.last, one.forming, one.ticker
    now = Text(number_text(forming.close)) if forming else Text()
    if ticker is not None and forming is None:  # as old as the ticker may be
        now = Text(number_text(ticker.last), style="dim")
    day = Text()
    if ticker is not None:
        day = Text(f"{ticker.change_percent:+.2f}", style="green" if ticker.change_percent >= 0 else "red")
    more: list[str | Text] = []
    if wide:
        more.append(f"{number_text(ticker.low)} to {number_text(ticker.high)}" if ticker else "")
        more.append(f"{ticker.quote_volume:,.0f}" if ticker else "")
        more.append(f"{one.added:,}")
    return [
        str(one.key),
        clock_text(last.close_ms + 1)[11 : 19 if one.key.interval.name == "1s" else 16] if last else "",
        number_text(last.close) if last else "",
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
