"""What a monitor is asked to do. Needs no Prefect: a mistake is told before anything is made or started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from exchange.config import ExchangeConfig
from exchange.monitor import MonitorConfig
from exchange.stream import StreamConfig
from flows.config import ConfigError, override
from kronos_model.settings import Positive, Seconds, settings
from storage.schema import SeriesKey

__all__ = ["WatchConfig", "seconds", "watch_config"]

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
