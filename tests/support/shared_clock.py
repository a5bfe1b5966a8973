"""A clock that several processes read and that only their sleeping moves."""

import fcntl
import struct
import threading
from pathlib import Path


class SharedClock:
    """Seconds in a file. A sleep sets it to what the sleeper saw last, plus as long as it sleeps."""

    def __init__(self, path: Path, start: float | None = None) -> None:
        self._path = path
        self._seen = threading.local()
        if start is not None:
            path.write_bytes(struct.pack("<d", start))

    def __call__(self) -> float:
        self._seen.at = struct.unpack("<d", self._path.read_bytes())[0]
        return self._seen.at

    def sleep(self, seconds: float) -> None:
        until = getattr(self._seen, "at", None) or self()
        until += seconds
        with self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if struct.unpack("<d", file.read(8))[0] < until:
                file.seek(0)
                file.write(struct.pack("<d", until))
                file.flush()
