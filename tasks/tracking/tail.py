"""A training job's numbers on their way into a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.interval import wall_clock_ms
from tasks.refs import RunRef
from tasks.tracking.store import open_client

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["MetricTail"]

_BATCH = 1000  # metrics that MLflow takes in one request


class MetricTail:
    """Copies the numbers of a job's metrics.jsonl into a run, each step once, however often the job is resumed."""

    def __init__(self, run: RunRef, path: Path, prefix: str) -> None:
        self._run, self._path, self._prefix = run, path, prefix
        self._offset, self._inode = 0, -1
        self._queue: list[list[Metric]] = []  # by record
        self._seen = {phase: self._last_step(phase) for phase in ("train", "validation")}

    def poll(self) -> dict[str, Any] | None:
        """Queue what is new and return the newest record."""
        records = self._new_records()
        for record in records:
            phase, step = record.get("phase", ""), int(record.get("step", 0))
            if phase in self._seen and step > self._seen[phase]:
                self._seen[phase] = step
                self._queue.append(self._metrics(record, phase, step))
        return records[-1] if records else None

    def send(self) -> None:
        """Send the queue. Raises MlflowException when MLflow does not answer; what was not sent stays queued."""
        while self._queue:
            # Whole records: a step that is known by its loss must be there with all its numbers.
            count = max(1, _BATCH // max(1, *map(len, self._queue)))
            metrics = [metric for record in self._queue[:count] for metric in record]
            open_client(self._run.uri).log_batch(self._run.run_id, metrics=metrics)
            del self._queue[:count]

    def _metrics(self, record: Mapping[str, Any], phase: str, step: int) -> list[Metric]:
        from mlflow.entities import Metric

        return [
            Metric(f"{self._prefix}/{phase}/{name}", float(value), wall_clock_ms(), step)
            for name, value in record.items()
            if name not in ("phase", "step", "epoch", "seconds") and isinstance(value, int | float)
        ]

    def _new_records(self) -> list[dict[str, Any]]:
        """Complete lines since the last call; from the start again when a resumed job has cut the file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._offset, self._inode = 0, status.st_ino
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + 1 if complete else 0
        return [json.loads(line) for line in complete.splitlines()]

    def _last_step(self, phase: str) -> int:
        history = open_client(self._run.uri).get_metric_history(
            self._run.run_id, f"{self._prefix}/{phase}/loss"
        )
        return max((point.step for point in history), default=-1)
