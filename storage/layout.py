"""Where things are: one root that holds all that the program writes."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from storage.atomic import storage_errors
from storage.errors import StorageError
from storage.locks import ProcessLock
from storage.object_home import turn
from storage.schema import SeriesKey

__all__ = ["Home", "series_folder"]


class _Place:
    """A folder of a home, under the name that it has here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, home: "Home", owner: type) -> Path:
        return home.root / self._name


@dataclass(frozen=True, slots=True)
class Home:
    """The root folder and the places below it; `Home.at` makes and checks it."""

    root: Path

    lake = _Place()
    """Candles and their ledger."""
    datasets = _Place()
    """One folder per digest."""
    jobs = _Place()
    """Training jobs and evaluations, one folder each."""
    models = _Place()
    """Starting weights and the champion of each recipe."""
    forecasts = _Place()
    """Forecasts made live."""
    reports = _Place()
    """What each ingest brought, as JSON and as a picture."""
    hub = _Place()
    """Published repositories as folders, where nothing is uploaded."""
    mlartifacts = _Place()
    """MLflow's artifacts."""
    prefect = _Place()
    """Prefect's home."""

    @classmethod
    def at(cls, path: str | Path, *, reads: bool = False) -> Self:
        """The home at `path`, created where absent; StorageError where it cannot be written.

        For who only `reads` it is left as it is.
        """
        root = Path(path).expanduser().resolve()
        if root.exists() and not root.is_dir():
            raise StorageError(f"expected a folder at {root}, found a file; choose another home")
        if reads:
            with storage_errors(root), suppress(FileNotFoundError):
                root.stat()  # a part of its path may be a file
            return cls(root)
        probe = root / f".probe-{uuid.uuid4().hex[:8]}"
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        return cls(root)

    @property
    def mlflow_uri(self) -> str:
        """MLflow's store: SQLite under the root."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @contextmanager
    def exclusive(self, purpose: str, *, run: str = "") -> Iterator[str]:
        """Hold the home for one run; a second run gets a LockedError that says who holds it since when.

        Yields the `run` of the last holder where that died without a word, else nothing ("").
        """
        lock = ProcessLock(self.root / ".lock", guarded=f"the home {self.root}")
        with lock.hold(purpose, run=run) as dead, self.writing(purpose, run=run) as dead_elsewhere:
            yield dead or dead_elsewhere

    def writing(self, purpose: str, *, run: str = "") -> AbstractContextManager[str]:
        """Write here for the block, beside others of this machine; on object storage what was made is then pushed.

        LockedError where another machine writes there. Yields the `run` of one that died in its turn, else nothing.
        """
        return turn(self.root, purpose, run=run)


def series_folder(lake: Path, key: SeriesKey) -> Path:
    """The folder of one series: `market=um/symbol=DOGEUSDT/interval=1h`."""
    return lake / f"market={key.market}" / f"symbol={key.symbol}" / f"interval={key.interval.slug}"
