"""Keep series of the lake up to date while they trade."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow

from exchange.monitor_state import MonitorState
from flows.environment import open_home
from flows.forms import Duration, SeriesName, SettingsForm
from flows.recipes import IntervalName
from flows.watching import WatchConfig, watch_config
from tasks.monitor import monitor as monitor_task
from tasks.monitor import rehearsed
from tasks.monitor_log import LogLines

__all__ = ["monitor"]

_ELSEWHERE = ("series", "interval", "duration_s", "csv", "json")
WatchSettings = Annotated[
    dict[str, Any] | None, SettingsForm(WatchConfig(series=("um:DOGEUSDT",)), without=_ELSEWHERE)
]


@flow(name="monitor", flow_run_name="monitor {interval}")
def monitor(
    series: list[SeriesName],
    interval: IntervalName = "1m",
    backfill: Duration = "24h",
    every: Duration = "60s",
    duration: Duration | None = "1h",
    csv_file: str | None = None,
    json_file: str | None = None,
    settings: WatchSettings = None,
) -> MonitorState:
    """Append closed candles to the lake as they close.

    Args:
        series: What to watch, each market:SYMBOL such as um:DOGEUSDT.
        interval: Candle interval, such as 1m.
        backfill: How far back to fill at the start, such as 24h.
        every: How often to poll where there is no WebSocket, such as 60s.
        duration: How long to run, such as 1h; empty means until it is cancelled.
        csv_file: File to which closed candles are appended.
        json_file: File that holds the latest state.
        settings: Where Binance is and how it is followed; what stays empty is as documented.
    """
    chosen = {"interval": interval, "backfill": backfill, "every": every, "duration": duration}
    config = watch_config(series, **chosen, csv=csv_file, json=json_file, settings=settings)
    keys = config.keys()
    home = open_home()
    with (
        home.writing("monitor"),
        rehearsed(config.replay, keys, config.exchange, config.stream, speed=config.speed) as places,
    ):
        state: MonitorState = monitor_task(
            home, keys, *places, config.monitor, on_update=LogLines(), **config.ends()
        )
    return state
