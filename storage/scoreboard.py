"""How live forecasts did: one row per forecast, written once, when its truth is in the lake.

`forecasts/scores/<slug>.parquet`. A forecast whose horizon has a hole waits a day longer, since the exchange may still
fill it; then it is scored on the candles that came.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.errors import StorageError
from storage.forecasts import ForecastStore, StoredForecast
from storage.lake import Lake
from storage.layout import Home
from storage.locks import ProcessLock
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet
from storage.registry import champions
from storage.schema import SeriesKey

__all__ = ["SCORE_SCHEMA", "Record", "Scoreboard", "Scored", "Tally", "by_period", "live_record", "tally"]

Floats = NDArray[np.float64]
_QUANTILE = "close_q"
_DAY_MS = 86_400_000
_PATIENCE_S = 30.0
_STEPS = ("crps", "last_value", "covered_50", "covered_90")
SCORE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "forecast": pl.String,  # its folder's name
    "origin": pl.Datetime("ms", "UTC"),  # open time of the last candle that the model saw
    "model_digest": pl.String,
    **dict.fromkeys(_STEPS, pl.List(pl.Float64)),  # per step, in log return; null where no candle came
}
_PERIODS = ("1d", "1w", "1mo", "1q", "1y")
_MOST_PERIODS = 16


class Scored(Protocol):
    """Scores per step, (H,) each, NaN where no candle came."""

    @property
    def crps(self) -> Floats: ...
    @property
    def last_value(self) -> Floats: ...
    @property
    def covered_50(self) -> Floats: ...
    @property
    def covered_90(self) -> Floats: ...


Score = Callable[[Floats, Floats, Floats, float], Scored]
"""From levels (Q,), quantiles (Q, H), closes that came (H,) and the last close before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Many forecasts in a few numbers; None where none was scored."""

    scored: int
    waiting: int
    crps_bps: float | None = None
    last_value_bps: float | None = None
    skill: float | None = None
    coverage_50: float | None = None
    coverage_90: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Record:
    """How all who ever served a recipe did, while they served and after."""

    total: Tally
    series: dict[SeriesKey, Tally]
    rows: pl.DataFrame  # of all series, as SCORE_SCHEMA has it


class Scoreboard:
    """The scores of all stored forecasts of a home. Any process may bring it up to date."""

    def __init__(self, home: Home, score: Score) -> None:
        self._store, self._lake = ForecastStore(home.forecasts), Lake(home.lake)
        self._root = home.forecasts / "scores"
        self._score = score

    def update(self, key: SeriesKey) -> int:
        """Score what has become due; how many that were."""
        lock = ProcessLock(self._root / f".{key.slug}.lock", guarded=f"the scores of {key}")
        with lock.hold("scoring forecasts", wait_s=_PATIENCE_S):
            known = self._read(key)
            rows = list(self._due(key, set(known["forecast"])))
            if rows:
                added = pl.DataFrame(rows, schema=SCORE_SCHEMA, orient="row")
                write_parquet(pl.concat([known, added]).sort("forecast"), self._path(key))
        return len(rows)

    def rows(self, key: SeriesKey, models: Collection[str] | None = None) -> pl.DataFrame:
        """What has been scored of a series, oldest first; of these models alone where they are given."""
        rows = self._read(key)
        return rows if models is None else rows.filter(pl.col("model_digest").is_in(list(models)))

    def waiting(self, key: SeriesKey, models: Collection[str] | None = None) -> int:
        """Forecasts whose truth has not come yet."""
        left = self._store.list(key, skip=set(self._read(key)["forecast"]))
        return sum(models is None or one.model_digest in models for one in left)

    def _due(self, key: SeriesKey, known: set[str]) -> Iterator[tuple[object, ...]]:
        left, span = self._store.list(key, skip=known), self._lake.span(key)
        if not left or span is None:
            return
        candles = self._lake.read(key, left[0].origin_ms)
        times, closes = candles["open_time"].dt.epoch("ms").to_numpy(), candles["close"].to_numpy()
        for one in left:
            frame = one.frame()
            future = frame["open_time"].dt.epoch("ms").to_numpy()
            if future[-1] > span.last_ms:
                continue
            came = _at(future, times, closes)
            if np.isnan(came).any() and span.last_ms < future[-1] + _DAY_MS:
                continue
            yield self._row(one, frame, came)

    def _row(self, one: StoredForecast, frame: pl.DataFrame, came: Floats) -> tuple[object, ...]:
        names = [name for name in frame.columns if name.startswith(_QUANTILE)]
        levels = np.array([int(name.removeprefix(_QUANTILE)) / 100 for name in names])
        found = self._score(levels, frame.select(names).to_numpy().T, came, one.summary["last_close"])
        steps = (
            pl.Series(getattr(found, name), dtype=pl.Float64).fill_nan(None).to_list() for name in _STEPS
        )
        origin = datetime.fromtimestamp(one.origin_ms / 1000, UTC)
        return (one.path.name, origin, one.model_digest, *steps)

    def _read(self, key: SeriesKey) -> pl.DataFrame:
        path = self._path(key)
        if not path.exists():
            return pl.DataFrame(schema=SCORE_SCHEMA)
        try:
            return read_parquet(path)
        except PARQUET_ERRORS as error:
            raise StorageError(
                f"expected scores in {path}, found a damaged file; delete it, and they are computed again"
            ) from error

    def _path(self, key: SeriesKey) -> Path:
        return self._root / f"{key.slug}.parquet"


def live_record(home: Home, recipe: str, score: Score) -> Record:
    """The record of a recipe's champions, brought up to date; `score` is kronos_model's `score_quantiles`."""
    board, models = Scoreboard(home, score), {one.predictor_digest for one in champions(home, recipe)}
    series, parts = {}, [pl.DataFrame(schema=SCORE_SCHEMA)]
    for key in ForecastStore(home.forecasts).series():
        board.update(key)
        rows, waiting = board.rows(key, models), board.waiting(key, models)
        if len(rows) or waiting:
            series[key] = tally(rows, waiting=waiting)
            parts.append(rows)
    rows = pl.concat(parts)
    total = tally(rows, waiting=sum(one.waiting for one in series.values()))
    return Record(total=total, series=series, rows=rows)


def tally(rows: pl.DataFrame, *, waiting: int = 0) -> Tally:
    """All steps of these rows pooled, each weighing the same."""
    if rows.is_empty():
        return Tally(scored=0, waiting=waiting)
    return Tally(scored=len(rows), waiting=waiting, **_pooled(rows).row(0, named=True))


def by_period(rows: pl.DataFrame) -> pl.DataFrame:
    """The same for each day, week, month, quarter or year of origins, whichever gives at most sixteen; oldest first.

    Columns: period (its first day, UTC), scored, and the numbers of a Tally.
    """
    for length in _PERIODS:
        periods = rows.with_columns(pl.col("origin").dt.truncate(length).alias("period"))
        if periods["period"].n_unique() <= _MOST_PERIODS or length == _PERIODS[-1]:
            break
    parts = [
        _pooled(part).with_columns(pl.lit(start).alias("period"), pl.lit(len(part)).alias("scored"))
        for (start,), part in periods.group_by("period", maintain_order=True)
    ]
    return pl.concat(parts).sort("period") if parts else pl.DataFrame()


def _pooled(rows: pl.DataFrame) -> pl.DataFrame:
    """One row with the means over all steps."""
    steps = rows.select(pl.col(name).explode() for name in _STEPS)
    return steps.select(
        crps_bps=10_000 * pl.col("crps").mean(),
        last_value_bps=10_000 * pl.col("last_value").mean(),
        skill=1 - pl.col("crps").mean() / pl.col("last_value").mean(),
        coverage_50=pl.col("covered_50").mean(),
        coverage_90=pl.col("covered_90").mean(),
    )


def _at(wanted: NDArray[np.int64], times: NDArray[np.int64], closes: Floats) -> Floats:
    """Closes at these open times, NaN where there is no candle; `times` ascend."""
    place = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
    return np.where(times[place] == wanted, closes[place], np.nan)
