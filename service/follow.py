"""Candles as they close, while the service runs: a monitor in a thread that tries again for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from exchange.config import ExchangeConfig
from exchange.connect import Exchange
from exchange.errors import ExchangeError
from exchange.monitor import Monitor, MonitorConfig, Stopped, interruptible
from exchange.monitor_state import MonitorState, SeriesState
from exchange.stream import StreamConfig
from storage.errors import StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

AGAIN_S = 15.0


def wall_ms() -> int:
    """This machine's clock."""
    return time.time_ns() // 1_000_000


class Follower:
    """Keeps series of the lake up to date between `start` and `stop`; what it knows may be read at any time."""

    def __init__(
        self,
        home: Home,
        keys: Sequence[SeriesKey],
        exchange: ExchangeConfig,
        stream: StreamConfig,
        config: MonitorConfig | None = None,
    ) -> None:
        self.trouble = ""
        self._home, self._keys, self._exchange, self._stream = home, tuple(keys), exchange, stream
        self._config = config or MonitorConfig()
        self._ending = threading.Event()
        self._stop = threading.Event()  # of the monitor at work: it sets it whenever it ends
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._state: MonitorState | None = None
        self._ahead_ms = 0  # the exchange's clock minus ours

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with what has come in the lake."""
        self._ending.set()
        self._stop.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """It is at work."""
        return self._thread.is_alive()

    def now_ms(self) -> int:
        """The exchange's clock."""
        return wall_ms() + self._ahead_ms

    def of(self, key: SeriesKey) -> SeriesState | None:
        """What is known of a series; None of one that is not followed, or not yet."""
        state = self._state
        return next((one for one in state.series if one.key == key), None) if state else None

    def _run(self) -> None:
        while not self._ending.is_set():
            self._stop = threading.Event()
            if self._ending.is_set():
                return
            try:
                self._follow()
            except Stopped:
                continue
            except (ExchangeError, StorageError) as error:
                self.trouble = str(error)
                logger.warning("%s", error)
                self._ending.wait(AGAIN_S)

    def _follow(self) -> None:
        shared = Exchange(self._home.lake, self._exchange, sleep=interruptible(self._stop))
        with shared.clients(key.market for key in self._keys) as clients:
            Monitor(
                self._keys,
                lake=Lake(self._home.lake),
                ledger=Ledger(self._home.lake),
                clients=clients,
                stop=self._stop,
                config=self._config,
                stream=self._stream,
                on_update=self._take,
            ).run()

    def _take(self, state: MonitorState) -> None:
        if self._state is None or state.exchange_ms != self._state.exchange_ms:
            self._ahead_ms = state.exchange_ms - wall_ms()
        self._state, self.trouble = state, state.last_error
