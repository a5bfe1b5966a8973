"""How live forecasts did: one row per forecast, written once, when its truth is in the lake.

`forecasts/scores/<slug>.parquet`. Who only reads gets what is due and not written yet as well, computed in memory.
A forecast whose horizon has a hole waits a day longer, since the exchange may still fill it; then it is scored on the
candles that came. Forecasts from before paths were kept are scored from their quantiles and marked: the two estimators
do not compare, so no number is taken over both.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.errors import StorageError
from storage.forecasts import AS_ASKED, ForecastStore, StoredForecast
from storage.lake import Lake
from storage.layout import Home
from storage.locks import ProcessLock
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet
from storage.registry import champions
from storage.schema import SeriesKey

__all__ = [
    "SCORE_SCHEMA",
    "Record",
    "Scoreboard",
    "Standing",
    "Tally",
    "by_period",
    "live_record",
    "score_due",
    "summed",
    "tally",
]

Floats = NDArray[np.float64]
_QUANTILE = "close_q"
_DAY_MS = 86_400_000
_PATIENCE_S = 30.0
_STEPS = ("crps", "last_value", "covered_50", "covered_90")
SCORE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "forecast": pl.String,  # its folder's name
    "made": pl.Int64,  # ms since 1970; null in scores of an older version, as below
    "as_recipe": pl.Boolean,  # with the recipe's own number of paths and seed
    "origin": pl.Datetime("ms", "UTC"),  # open time of the last candle that the model saw
    "model_digest": pl.String,
    "estimator": pl.String,  # paths, as the leaderboard scores, or quantiles
    **dict.fromkeys(_STEPS, pl.List(pl.Float64)),  # per step, in log return; null where no candle came
}
_Row = tuple[object, ...]  # as SCORE_SCHEMA has it
_PERIODS = ("1d", "1w", "1mo", "1q", "1y")
_MOST_PERIODS = 16


Score = Callable[[Floats, Floats, NDArray[np.float32] | None, Floats, float, NDArray[np.int64] | None], Any]
"""From levels (Q,), quantiles (Q, H), closes of the paths (S, H) where they were kept, closes that came (H,), the last
close before them and, of a pool, the paths' members (S,): an object that has the name of its estimator and, under each
name in _STEPS, scores per step (H,), NaN where no candle came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Many forecasts in a few numbers; None where none was scored."""

    scored: int
    waiting: int
    """Origins whose truth has not come yet."""
    estimator: str | None = None
    """Of the CRPS of all that were scored: paths or quantiles."""
    apart: int = 0
    """Scored by the other estimator, and in none of the numbers."""
    crps_bps: float | None = None
    last_value_bps: float | None = None
    skill: float | None = None
    coverage_50: float | None = None
    coverage_90: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standing:
    """The forecasts of a series whose truth has come, as SCORE_SCHEMA has them, and how many origins still wait."""

    rows: pl.DataFrame
    waiting: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Record:
    """How all who ever served a recipe did, while they served and after; by one estimator for all series.

    As soon as a forecast was scored by its paths, only those are counted. An origin counts once for each model that
    forecast it: with the recipe's own number of paths and seed, or else as it was first made.
    """

    total: Tally
    series: dict[SeriesKey, Tally]
    parts: dict[SeriesKey, pl.DataFrame]  # that the numbers are of, as SCORE_SCHEMA has it
    as_asked: int
    """Forecasts that were drawn otherwise than their model was judged, and are in none of the numbers."""

    @property
    def rows(self) -> pl.DataFrame:
        """Those of all series."""
        return pl.concat([pl.DataFrame(schema=SCORE_SCHEMA), *self.parts.values()])


class Scoreboard:
    """The scores of all stored forecasts of a home. One that lives on computes what is due and not kept yet once."""

    def __init__(self, home: Home, score: Score) -> None:
        """`score` is kronos_model's `score_stored`."""
        self.home = home
        self._store, self._lake = ForecastStore(home.forecasts), Lake(home.lake)
        self._root = home.forecasts / "scores"
        self._score = score
        self._made: dict[SeriesKey, dict[str, _Row]] = {}  # by forecast: what is due and not kept yet

    def series(self) -> list[SeriesKey]:
        """Those that have forecasts."""
        return self._store.series()

    def update(self, key: SeriesKey) -> int:
        """Score what has become due and write it; how many that were."""
        lock = ProcessLock(self._root / f".{key.slug}.lock", guarded=f"the scores of {key}")
        with lock.hold("scoring forecasts", wait_s=_PATIENCE_S):
            known = self._read(key)
            due = list(self._due(key, self._unscored(key, known)))
            if due:
                write_parquet(_joined(known, due), self._path(key))
        return len(due)

    def standing(self, key: SeriesKey, models: Collection[str] | None = None) -> Standing:
        """Of a series as of now, oldest first, with what is due computed; of these models where they are given.

        Writes nothing.
        """
        known = self._read(key)
        left = self._unscored(key, known)
        before = self._made.get(key, {})
        made = {one.path.name: before[one.path.name] for one in left if one.path.name in before}
        if models is not None:
            known = known.filter(pl.col("model_digest").is_in(list(models)))
            left = [one for one in left if one.model_digest in models]
        new = self._due(key, [one for one in left if one.path.name not in made])
        made |= {str(row[0]): row for row in new}
        self._made[key] = made
        due = [made[one.path.name] for one in left if one.path.name in made]
        waiting = {_asked_of(one) for one in left if one.path.name not in made}
        return Standing(rows=_joined(known, due), waiting=len(waiting))

    def _unscored(self, key: SeriesKey, known: pl.DataFrame) -> list[StoredForecast]:
        return self._store.list(key, skip=set(known["forecast"]))

    def _due(self, key: SeriesKey, left: Sequence[StoredForecast]) -> Iterator[_Row]:
        """Those of `left` whose truth has come, scored."""
        span = self._lake.span(key) if left else None
        if span is None:
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

    def _row(self, one: StoredForecast, frame: pl.DataFrame, came: Floats) -> _Row:
        names = [name for name in frame.columns if name.startswith(_QUANTILE)]
        levels = np.array([int(name.removeprefix(_QUANTILE)) / 100 for name in names])
        quantiles = frame.select(names).to_numpy().T
        closes, member = one.paths() or (None, None)
        found = self._score(levels, quantiles, closes, came, one.summary["last_close"], member)
        steps = (
            pl.Series(getattr(found, name), dtype=pl.Float64).fill_nan(None).to_list() for name in _STEPS
        )
        origin = datetime.fromtimestamp(one.origin_ms / 1000, UTC)
        as_recipe = one.summary.get("as_recipe", True)  # an older version did not write it down
        return (one.path.name, one.saved_ms, as_recipe, origin, one.model_digest, found.estimator, *steps)

    def _read(self, key: SeriesKey) -> pl.DataFrame:
        path = self._path(key)
        if not path.exists():
            return pl.DataFrame(schema=SCORE_SCHEMA)
        try:
            return _marked(read_parquet(path))
        except PARQUET_ERRORS as error:
            raise StorageError(
                f"expected scores in {path}, found a damaged file; delete it, and they are computed again"
            ) from error

    def _path(self, key: SeriesKey) -> Path:
        return self._root / f"{key.slug}.parquet"


def _marked(rows: pl.DataFrame) -> pl.DataFrame:
    """Scores as SCORE_SCHEMA has them; those written before there were two estimators are of quantiles."""
    lacking = {"estimator": "quantiles", "made": None, "as_recipe": None}
    added = [
        pl.lit(value, SCORE_SCHEMA[name]).alias(name)
        for name, value in lacking.items()
        if name not in rows.columns
    ]
    return rows.with_columns(added).select(list(SCORE_SCHEMA))


def _joined(known: pl.DataFrame, due: Sequence[_Row]) -> pl.DataFrame:
    return pl.concat([known, pl.DataFrame(due, schema=SCORE_SCHEMA, orient="row")]).sort("forecast")


def score_due(board: Scoreboard) -> int:
    """Score the forecasts of a home that have become due and write it; how many that were."""
    return sum(board.update(key) for key in board.series())


def live_record(board: Scoreboard, recipe: str, *, otherwise: Collection[str] = ()) -> Record:
    """The record of a recipe's champions as of now; where it never had one, of the models `otherwise`, of all recipes.

    Writes nothing.
    """
    models = {one.predictor_digest for one in champions(board.home, recipe)} or set(otherwise)
    found = {key: board.standing(key, models) for key in board.series()}
    found = {key: one for key, one in found.items() if len(one.rows) or one.waiting}
    rows = {key: _each_origin_once(one.rows) for key, one in found.items()}
    pooled = pl.concat([pl.DataFrame(schema=SCORE_SCHEMA), *rows.values()])
    estimator = "paths" if (pooled["estimator"] == "paths").any() else "quantiles"
    asked = [board.standing(key, {model + AS_ASKED for model in models}) for key in board.series()]
    return Record(
        total=_tally_of(pooled, estimator, waiting=sum(one.waiting for one in found.values())),
        series={key: _tally_of(rows[key], estimator, waiting=one.waiting) for key, one in found.items()},
        parts={key: part.filter(pl.col("estimator") == estimator) for key, part in rows.items()},
        as_asked=sum(len(one.rows) + one.waiting for one in asked),
    )


def _each_origin_once(rows: pl.DataFrame) -> pl.DataFrame:
    """Of several forecasts of an origin by a model the one with the recipe's own settings, or else the first made."""
    best = pl.col("estimator"), pl.col("as_recipe").fill_null(value=True).not_(), pl.col("made").fill_null(0)
    steps = pl.col("crps").list.len().alias("steps")
    once = (
        rows.with_columns(steps)
        .sort(*best, "forecast")
        .unique(["model_digest", "origin", "steps"], keep="first")
    )
    return once.drop("steps").sort("forecast")


def _asked_of(one: StoredForecast) -> tuple[Any, ...]:
    """What several forecasts of one origin by one model share."""
    return one.model_digest, one.origin_ms, one.summary.get("horizon_end_ms")


def _tally_of(rows: pl.DataFrame, estimator: str, *, waiting: int) -> Tally:
    """Of those scored by this estimator, with the number of the others."""
    chosen = rows.filter(pl.col("estimator") == estimator)
    return tally(chosen, waiting=waiting, apart=len(rows) - len(chosen))


def tally(rows: pl.DataFrame, *, waiting: int = 0, apart: int = 0) -> Tally:
    """All steps of these rows pooled, each weighing the same; ValueError where two estimators scored them."""
    if rows.is_empty():
        return Tally(scored=0, waiting=waiting, apart=apart)
    return Tally(
        scored=len(rows),
        waiting=waiting,
        apart=apart,
        estimator=rows["estimator"][0],
        **_pooled(rows).row(0, named=True),
    )


def summed(rows: pl.DataFrame, candle_ms: int) -> tuple[NDArray[np.int64], Floats, Floats, int] | None:
    """Origins in ms, CRPS and last value's, each (N,) and summed over steps, and the longest horizon in ms.

    What the interval of a skill is measured from, for candles of that length; None where nothing has a truth.
    """
    sums = rows.with_columns(pl.col("crps", "last_value").list.sum(), steps=pl.col("crps").list.len())
    sums = sums.filter(pl.col("last_value") > 0)
    if sums.is_empty():
        return None
    origins, longest = sums["origin"].dt.epoch("ms").to_numpy(), int(sums["steps"].to_numpy().max())
    return origins, sums["crps"].to_numpy(), sums["last_value"].to_numpy(), longest * candle_ms


def by_period(rows: pl.DataFrame) -> pl.DataFrame:
    """The same for each day, week, month, quarter or year of origins, whichever gives at most sixteen; oldest first.

    Of rows that one estimator scored. Columns: period (its first day, UTC), scored, and the numbers of a Tally.
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
    """One row with the means over all steps of rows that one estimator scored."""
    if (estimators := rows["estimator"].unique().sort().to_list())[1:]:
        raise ValueError(
            f"expected scores of one estimator, found {' and '.join(estimators)}; pool each by itself"
        )
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
