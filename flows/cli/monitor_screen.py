"""`kronos monitor`: a monitor in front of its user, without Prefect."""

from __future__ import annotations

import threading

from rich.console import Console

from exchange.monitor_state import MonitorState
from flows.cli.live_table import view
from flows.monitor import WatchConfig
from flows.site.signals import stop_on_signals
from storage.layout import Home
from tasks.monitor import monitor as monitor_task
from tasks.monitor import rehearsed

__all__ = ["watch"]


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
