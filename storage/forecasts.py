"""Forecasts made live, kept as they were made: one folder per question, never changed.

A folder is named by the origin and by a digest of all that determines the forecast. Those written by version 0.1.0 are
named by origin and model, and are read as they were.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from storage.atomic import atomic_directory, write_json
from storage.errors import StorageError
from storage.interval import Interval, wall_clock_ms
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet
from storage.schema import SeriesKey, utc_text

__all__ = ["ForecastQuestion", "ForecastStore", "StoredForecast"]

_ROWS = "forecast.parquet"
_FACTS = "summary.json"
_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastQuestion:
    """Everything that determines a forecast; another question gets another forecast."""

    key: SeriesKey
    origin_ms: int
    """Open time of the last candle that the model saw."""
    tokenizer_digest: str
    model_digest: str
    """Of the predictor and of the post-processing beside it."""
    seen: str
    """Digest of the candles that it saw."""
    lookback: int
    horizon: int
    sampling: Mapping[str, Any]
    """What decides which paths are drawn: their number, temperature, top-k, top-p, precision."""
    seed: int

    @property
    def name(self) -> str:
        """Origin and sixteen hex digits over all of it: the forecast's folder."""
        text = json.dumps([str(self.key), self.facts()], sort_keys=True)
        return f"{_stamp(self.origin_ms)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def facts(self) -> dict[str, Any]:
        """All but the series, as JSON holds it."""
        told = asdict(self)
        del told["key"]
        return told


@dataclass(frozen=True, slots=True)
class StoredForecast:
    """A forecast at rest."""

    key: SeriesKey
    origin_ms: int
    """Open time of the last candle that the model saw."""
    model_digest: str
    saved_ms: int
    path: Path
    """The folder."""
    summary: dict[str, Any]

    def frame(self) -> pl.DataFrame:
        """One row per step: open_time, step, mean and quantiles."""
        try:
            return read_parquet(self.path / _ROWS)
        except (*PARQUET_ERRORS, FileNotFoundError) as error:
            raise StorageError(
                f"expected a forecast in {self.path}, found a damaged file; delete it and forecast again"
            ) from error


class ForecastStore:
    """All forecasts under one root. What is saved stays."""

    def __init__(self, root: Path, *, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._root = root
        self._now_ms = now_ms

    def save(self, question: ForecastQuestion, frame: pl.DataFrame, summary: dict[str, Any]) -> Path:
        """Keep a forecast and return its folder. The same again does nothing, another is a StorageError."""
        key = question.key
        _check(frame, key)
        path = self._path(question)
        facts = {
            "version": _VERSION,
            "key": str(key),
            "origin_ms": question.origin_ms,
            "model_digest": question.model_digest,
            "saved_ms": self._now_ms(),
            "question": question.facts(),
            "summary": summary,
        }
        if not path.exists():
            try:
                with atomic_directory(path) as folder:
                    write_parquet(frame, folder / _ROWS)
                    write_json(folder / _FACTS, facts)
                return path
            except StorageError:
                if not path.exists():  # else another process has just saved it
                    raise
        stored = _load(path, key)
        if stored.summary == json.loads(json.dumps(summary)) and stored.frame().equals(frame):
            return path
        raise StorageError(
            f"expected the forecast of {key} at {utc_text(question.origin_ms)} by {question.model_digest[:16]} as "
            f"stored, found another one; a stored forecast is never changed: keep it or delete {path}"
        )

    def series(self) -> list[SeriesKey]:
        """The keys of all series that have forecasts, in order."""
        folders = {facts.parent.parent for facts in self._root.glob(f"*/[!.]*/{_FACTS}")}
        return sorted(map(_key_of, folders))

    def list(
        self, key: SeriesKey, start_ms: int | None = None, *, skip: Collection[str] = ()
    ) -> list[StoredForecast]:
        """The forecasts of a series, by origin and then by when they were saved, the newest last.

        Those from before `start_ms`, and folders named in `skip`, are not opened.
        """
        first = "" if start_ms is None else _stamp(start_ms)
        stored = [
            _load(facts.parent, key)
            for facts in (self._root / key.slug).glob(f"[!.]*/{_FACTS}")
            if first <= facts.parent.name and facts.parent.name not in skip
        ]
        return sorted(stored, key=lambda one: (one.origin_ms, one.saved_ms, one.model_digest))

    def find(self, question: ForecastQuestion) -> StoredForecast | None:
        """The answer to that question; None where it was not made."""
        path = self._path(question)
        return _load(path, question.key) if path.exists() else None

    def read(self, key: SeriesKey, path: Path) -> StoredForecast:
        """The forecast in a folder of this store."""
        return _load(path, key)

    def _path(self, question: ForecastQuestion) -> Path:
        return self._root / question.key.slug / question.name


def _check(frame: pl.DataFrame, key: SeriesKey) -> None:
    missing = [name for name in ("open_time", "step") if name not in frame.columns]
    if missing or frame.is_empty():
        found = f"no {' and no '.join(missing)}" if missing else "no rows"
        raise StorageError(
            f"expected a forecast of {key} with open_time, step and a row per step, found {found}; correct it"
        )


def _key_of(folder: Path) -> SeriesKey:
    """The key whose slug a folder is named by; a symbol has no hyphen."""
    market, symbol, interval = folder.name.split("-")
    return SeriesKey.parse(f"{market}:{symbol}", Interval.of_slug(interval))


def _stamp(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y%m%dT%H%M%SZ")


def _load(path: Path, key: SeriesKey) -> StoredForecast:
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        return StoredForecast(
            key=key,
            origin_ms=facts["origin_ms"],
            model_digest=facts["model_digest"],
            saved_ms=facts["saved_ms"],
            path=path,
            summary=facts["summary"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"expected a forecast in {path}, found no readable {_FACTS}; delete it and forecast again"
        ) from error
