"""Keep series of the lake up to date while they trade."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from prefect import flow

from exchange.monitor import MonitorConfig
from exchange.monitor_state import MonitorState
from exchange.rest import ExchangeConfig
from exchange.stream import StreamConfig
from flows.config import ConfigError, override
from flows.environment import open_home
from flows.forms import Duration, SeriesName, SettingsForm
from flows.recipes import IntervalName
from kronos_model.settings import Positive, Seconds, settings
from storage.schema import SeriesKey
from tasks.monitor import monitor as monitor_task
from tasks.monitor import rehearsed
from tasks.monitor_log import LogLines

__all__ = ["WatchConfig", "monitor", "seconds", "watch_config"]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TIMES = {"backfill": "monitor.backfill_s", "every": "monitor.every_s", "duration": "duration_s"}


@settings
class WatchConfig:
    """Everything that decides what a monitor does."""

    series: tuple[str, ...]
    """Series to watch, each market:SYMBOL (spot or um), e.g. um:DOGEUSDT."""
    interval: str = "1m"
    """Candle interval."""
    duration_s: Seconds | None = None
    """Seconds after which it ends; empty means when it is stopped."""
    csv: str | None = None
    """File to which closed candles are appended."""
    json: str | None = None
    """File that holds the latest state, replaced as a whole."""
    replay: str = ""
    """Rehearse on a replay exchange instead of asking Binance: a folder of klines, or 'synthetic'."""
    speed: Positive = 60.0
    """Exchange seconds per second in a rehearsal."""
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    """Where Binance is."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Where Binance streams."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """How far back, and how often."""

    def __post_init__(self) -> None:
        if not self.series or len(set(self.series)) < len(self.series):
            found = ", ".join(self.series) or "none"
            raise ConfigError(f"Expected series to watch, each once, found {found}; correct --series.")

    def ends(self) -> dict[str, Any]:
        """Where it writes besides the lake, and how long."""
        return {
            "duration_s": self.duration_s,
            "csv": self.csv and Path(self.csv),
            "json": self.json and Path(self.json),
        }

    def keys(self) -> list[SeriesKey]:
        """The series as storage keys. Raises StorageError for a malformed market, symbol or interval."""
        return [SeriesKey.parse(name, self.interval) for name in self.series]


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


def watch_config(
    series: Sequence[str], *, settings: Mapping[str, Any] | None = None, **chosen: Any
) -> WatchConfig:
    """A configuration out of what was chosen (None: the default), then dotted `settings`.

    `backfill`, `every` and `duration` are times such as 90s, 15m, 24h or 7d. Raises ConfigError for a setting
    that does not exist or cannot be.
    """
    values: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    for name, path in _TIMES.items():
        if name in values:
            values[path] = seconds(values.pop(name))
    for name in ("csv", "json"):
        if name in values:
            values[name] = str(values[name])
    return override(WatchConfig(series=tuple(series)), {**values, **(settings or {})})


def seconds(text: str) -> float:
    """`90s`, `15m`, `24h`, `7d` or plain seconds. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise ConfigError(
            f"Expected a time such as 90s, 15m, 24h or 7d, found {text!r}; write a number and a unit."
        )
    return float(found[1]) * _UNITS[found[2] or "s"]
