"""Where things are: one root that holds all that the program writes."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from storage.atomic import storage_errors
from storage.errors import StorageError
from storage.locks import ProcessLock
from storage.object_home import turn
from storage.schema import SeriesKey

__all__ = ["Home", "series_folder"]


@dataclass(frozen=True, slots=True)
class Home:
    """The root folder and the places below it; `Home.at` makes and checks it."""

    root: Path

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
    def lake(self) -> Path:
        """Candles and their ledger."""
        return self.root / "lake"

    @property
    def datasets(self) -> Path:
        """Datasets, one folder per digest."""
        return self.root / "datasets"

    @property
    def jobs(self) -> Path:
        """Training jobs, one folder each."""
        return self.root / "jobs"

    @property
    def models(self) -> Path:
        """Starting weights and the champion of each recipe."""
        return self.root / "models"

    @property
    def forecasts(self) -> Path:
        """Forecasts made live."""
        return self.root / "forecasts"

    @property
    def reports(self) -> Path:
        """What each ingest brought, as JSON and as a picture."""
        return self.root / "reports"

    @property
    def hub(self) -> Path:
        """Published repositories as folders, where nothing is uploaded."""
        return self.root / "hub"

    @property
    def mlartifacts(self) -> Path:
        """MLflow's artifacts."""
        return self.root / "mlartifacts"

    @property
    def mlflow_uri(self) -> str:
        """MLflow's store: SQLite under the root."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def prefect(self) -> Path:
        """Prefect's home."""
        return self.root / "prefect"

    @contextmanager
    def exclusive(self, purpose: str, *, run: str = "") -> Iterator[str]:
        """Hold the home for one run; a second run gets a LockedError that says who holds it since when.

        Yields the `run` of the last holder where that died without a word, else nothing ("").
        """
        lock = ProcessLock(self.root / ".lock", guarded=f"the home {self.root}")
        with lock.hold(purpose, run=run) as dead, self.writing(purpose, run=run) as dead_elsewhere:
            yield dead or dead_elsewhere

    @contextmanager
    def writing(self, purpose: str, *, run: str = "") -> Iterator[str]:
        """Write here for the block, beside others of this machine; on object storage what was made is then pushed.

        LockedError where another machine writes there. Yields the `run` of one that died in its turn, else nothing.
        """
        with turn(self.root, purpose, run=run) as dead:
            yield dead


def series_folder(lake: Path, key: SeriesKey) -> Path:
    """The folder of one series: `market=um/symbol=DOGEUSDT/interval=1h`."""
    return lake / f"market={key.market}" / f"symbol={key.symbol}" / f"interval={key.interval.slug}"
