"""Forecasts made live, kept as they were made: one folder per question, never changed.

A folder is named by the origin and by a digest of all that determines the forecast. It holds a table of what was told,
the paths of closes that it was told from, and the facts. Those written by version 0.1.0 are named by origin and model;
they and others of before paths were kept are read as they were.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.atomic import atomic_directory, write_json
from storage.errors import StorageError
from storage.interval import Interval, wall_clock_ms
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet
from storage.schema import SeriesKey, utc_text

__all__ = ["AS_ASKED", "ForecastQuestion", "ForecastStore", "StoredForecast"]

AS_ASKED = "-as-asked"
"""Behind the digest of a model that drew as it was asked, otherwise than judged: no forecast of the champion's."""

_ROWS = "forecast.parquet"
_PATHS = "paths.parquet"
_FACTS = "summary.json"
_VERSION = 3

Closes = NDArray[np.float32]


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
    code: str
    """Digest of the code that draws: an update of it is another question."""

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
    samples: int
    """Paths that are kept; 0 where only quantiles are."""

    def frame(self) -> pl.DataFrame:
        """One row per step: open_time, step, mean and quantiles."""
        try:
            return read_parquet(self.path / _ROWS)
        except (*PARQUET_ERRORS, FileNotFoundError) as error:
            raise StorageError(
                f"expected a forecast in {self.path}, found a damaged file; delete it and forecast again"
            ) from error

    def closes(self) -> Closes | None:
        """The closes (S, H) of the paths that were drawn, to the last bit; None where they were not kept."""
        return None if (kept := self.paths()) is None else kept[0]

    def paths(self) -> tuple[Closes, NDArray[np.int64] | None] | None:
        """These closes, and of a pool by number which member (S,) each path is from; None where they were not kept."""
        if not self.samples:
            return None
        try:
            rows = read_parquet(self.path / _PATHS)
            closes = rows["closes"].explode().to_numpy().reshape(self.samples, -1)
            return closes, rows["member"].to_numpy().astype(np.int64) if "member" in rows.columns else None
        except (*PARQUET_ERRORS, FileNotFoundError, ValueError) as error:
            raise StorageError(
                f"expected {self.samples} paths of a forecast in {self.path}, found a damaged file; delete that "
                "folder and forecast again"
            ) from error


class ForecastStore:
    """All forecasts under one root. What is saved stays."""

    def __init__(self, root: Path, *, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._root = root
        self._now_ms = now_ms

    def save(
        self,
        question: ForecastQuestion,
        frame: pl.DataFrame,
        summary: dict[str, Any],
        *,
        closes: NDArray[np.floating] | None = None,
        member: NDArray[np.int64] | None = None,
    ) -> Path:
        """Keep a forecast and return its folder. The same again does nothing, another is a StorageError.

        `closes` (S, H) are those of its paths, kept in float32; without them its CRPS can only be estimated from
        the quantiles in `frame`. Of a pool, `member` (S,) says by number which one each path is from.
        """
        key = question.key
        _check(frame, key)
        paths = None if closes is None else _checked(np.asarray(closes, np.float32), len(frame), key)
        path = self._path(question)
        facts = {
            "version": _VERSION,
            "key": str(key),
            "origin_ms": question.origin_ms,
            "model_digest": question.model_digest,
            "saved_ms": self._now_ms(),
            "question": question.facts(),
            "samples": 0 if paths is None else len(paths),
            "summary": summary,
        }
        if not path.exists():
            try:
                with atomic_directory(path) as folder:
                    write_parquet(frame, folder / _ROWS)
                    if paths is not None:
                        write_parquet(_table(paths, member), folder / _PATHS)
                    write_json(folder / _FACTS, facts)
                return path
            except StorageError:
                if not path.exists():  # else another process has just saved it
                    raise
        stored = _load(path, key)
        told = stored.summary == json.loads(json.dumps(summary)) and stored.frame().equals(frame)
        if told and _same(stored.closes(), paths):
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


def _checked(closes: Closes, steps: int, key: SeriesKey) -> Closes:
    """The same paths; StorageError where they are none of that many steps, or no prices."""
    if closes.ndim != 2 or not len(closes) or closes.shape[1] != steps:
        raise StorageError(
            f"expected the closes of a forecast of {key} as paths of {steps} steps, found an array of shape "
            f"{closes.shape}; correct it"
        )
    if wrong := int((~(np.isfinite(closes) & (closes > 0))).sum()):
        raise StorageError(
            f"expected the closes of a forecast of {key} as prices above 0, found {wrong} of {closes.size} that are "
            "none; look at the model that drew them"
        )
    return closes


def _table(closes: Closes, member: NDArray[np.int64] | None) -> pl.DataFrame:
    """A row per path."""
    columns: dict[str, Any] = {"sample": np.arange(1, len(closes) + 1, dtype=np.int32), "closes": closes}
    if member is not None:
        columns["member"] = member.astype(np.int32)
    return pl.DataFrame(columns).with_columns(pl.col("closes").cast(pl.List(pl.Float32)))


def _same(stored: Closes | None, paths: Closes | None) -> bool:
    """Whether these are the stored paths; a forecast from before paths were kept is what it was, and not compared."""
    return stored is None or (paths is not None and np.array_equal(stored, paths))


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
            samples=facts.get("samples", 0),  # version 3 on
        )
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"expected a forecast in {path}, found no readable {_FACTS}; delete it and forecast again"
        ) from error
