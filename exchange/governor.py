"""One weight budget for all threads and processes of a home: kept in a small file, each change under a lock.

A killed process leaves nothing behind but the requests that it had under way, which count for a minute as
those of anybody. A ban outlives every process: until it is over all refuse at once.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from exchange.budget import LIMITS_PER_MINUTE, SHARE, WeightBudget
from exchange.errors import Banned
from exchange.weights import WeightClaim, WeightState
from storage.atomic import storage_errors, write_json
from storage.errors import LockedError
from storage.schema import Market

__all__ = ["FOLDER", "Governor"]

FOLDER = ".budget"  # in the lake
DAY_S = 86_400.0
LOCK_S = 30.0  # it is held for less than a millisecond
POLL_S = 0.002

logger = logging.getLogger(__name__)


class Governor(WeightBudget):
    """The weight of one market and host, shared through `<folder>/<market>.json`. Times are UTC seconds.

    Every process may make its own; threads of one process should share it. The limit is asked of the
    exchange, which a client does when `wants_limit` says so, and believed for a day.
    """

    def __init__(
        self,
        folder: Path,
        market: Market,
        url: str,
        *,
        share: float = SHARE,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(LIMITS_PER_MINUTE[market], share, clock=clock, sleep=sleep)
        self._path = folder / f"{market}.json"
        self._host = urlsplit(url).netloc
        self._market: Market = market
        self._file_lock = FileLock(folder / f"{market}.lock", timeout=LOCK_S, poll_interval=POLL_S)

    def wants_limit(self) -> bool:
        """Whether the exchange has not said its limit within a day."""
        with self._shared() as state:
            return state.limit_at is None or not 0 <= self._clock() - state.limit_at < DAY_S

    @contextmanager
    def _shared(self) -> Iterator[WeightState]:
        with self._lock, self._locked_file():
            hosts = self._read()
            before = hosts.get(self._host)
            state, self._ban = self._parse(before)
            banned = self._ban
            try:
                yield state
            finally:
                if (after := _entry(state, self._ban)) != before:
                    self._write(hosts | {self._host: after}, durable=self._ban is not banned)

    def _locked_file(self) -> AbstractContextManager[object]:
        """The lock, held until the block of the answer ends."""
        try:
            with storage_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                return self._file_lock.acquire()
        except Timeout as error:
            raise LockedError(
                f"expected the weight budget {self._path} to be free within {LOCK_S:.0f} s, found it locked; "
                "look for a stopped process of this program and end it"
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            logger.warning("%s cannot be read (%s) and is begun anew", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, hosts: dict[str, Any], *, durable: bool) -> None:
        now = self._clock()
        kept = {host: entry for host, entry in hosts.items() if host == self._host or _in_force(entry, now)}
        if durable:
            write_json(self._path, kept)
            return
        temporary = self._path.with_suffix(".tmp")  # ours: the lock is held
        with storage_errors(self._path):
            temporary.write_text(json.dumps(kept))
            temporary.replace(self._path)

    def _parse(self, entry: Any) -> tuple[WeightState, tuple[float, Banned] | None]:
        """The state of an entry; a new one where there is none, or none of this version."""
        try:
            fields = dict(entry)
            ban = fields.pop("ban")
            state = WeightState(**fields | {"asked": [WeightClaim(**one) for one in fields["asked"]]})
            return state, _ban_of(ban, self._clock()) if ban else None
        except (TypeError, KeyError, ValueError):
            return WeightState(limit=LIMITS_PER_MINUTE[self._market]), None


def _entry(state: WeightState, ban: tuple[float, Banned] | None) -> dict[str, Any]:
    told = {"until": ban[0], "until_ms": ban[1].until_ms, "sentence": str(ban[1])} if ban else None
    return asdict(state) | {"ban": told}


def _ban_of(told: dict[str, Any], now: float) -> tuple[float, Banned] | None:
    if told["until"] <= now:
        return None
    left_s = told["until"] - now
    return told["until"], Banned(told["sentence"], until_ms=told["until_ms"], seconds=left_s)


def _in_force(entry: dict[str, Any], now: float) -> bool:
    """Whether an entry of another host still means anything."""
    ban, window_end = entry.get("ban") or {}, float(entry.get("window_end") or 0.0)
    return now < max(float(ban.get("until", 0.0)), float(entry.get("paused_until", 0.0)), window_end + DAY_S)
