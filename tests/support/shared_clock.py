"""A clock that several processes read and that only their sleeping moves."""

import fcntl
import json
import struct
import threading
import time
from pathlib import Path

LONGEST_ANSWER_S = 5.0  # of real time; a request that takes longer is one of a process that is gone


class SharedClock:
    """Seconds in a file. A sleep sets it to what the sleeper saw last, plus as long as it sleeps.

    With `budgets`, the folder of a governor, it stands still while a request is under way. Else a minute may
    pass between a request and its arrival, when a busy machine makes one thread wait and lets another sleep.
    """

    def __init__(self, path: Path, start: float | None = None, *, budgets: Path | None = None) -> None:
        self._path = path
        self._budgets = budgets
        self._seen = threading.local()
        if start is not None:
            path.write_bytes(struct.pack("<d", start))

    def __call__(self) -> float:
        self._seen.at = struct.unpack("<d", self._path.read_bytes())[0]
        return self._seen.at

    def sleep(self, seconds: float) -> None:
        until = getattr(self._seen, "at", None) or self()
        until += seconds
        self._let_requests_arrive()
        with self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if struct.unpack("<d", file.read(8))[0] < until:
                file.seek(0)
                file.write(struct.pack("<d", until))
                file.flush()

    def _let_requests_arrive(self) -> None:
        latest = time.monotonic() + LONGEST_ANSWER_S
        while self._under_way() and time.monotonic() < latest:
            time.sleep(0.001)

    def _under_way(self) -> bool:
        """Whether a governor waits for an answer."""
        files = self._budgets.glob("*.json") if self._budgets else ()
        entries = (entry for file in files for entry in json.loads(file.read_text()).values())
        return any(one["lost"] is None for entry in entries for one in entry["asked"])
