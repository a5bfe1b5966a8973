"""What is on record: forecasts with what then came and how they did, and what the last night found."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kronos_model.evaluation.intervals import against
from kronos_model.evaluation.stored_scores import skill_interval
from kronos_model.served_words import REFERENCES_MODEL
from service.candle_cache import CandleCache
from service.champion_models import ChampionModels
from service.errors import Refused
from service.responses import facts_of
from service.schemas import Fan, LiveScores, NightScores, PastForecast
from storage.forecasts import ForecastStore, StoredForecast
from storage.layout import Home
from storage.schema import SeriesKey
from storage.scoreboard import Record, Scoreboard, live_record, summed

__all__ = ["history", "night_scores"]

_QUANTILE = "close_q"

Floats = NDArray[np.float64]


def history(home: Home, market: CandleCache, key: SeriesKey, *, hours: float) -> list[PastForecast]:
    """The forecasts whose origin lies within so many hours before the newest candle."""
    since_ms = market.last_ms(key) - round(hours * 3_600_000)
    stored = ForecastStore(home.forecasts).list(key, since_ms)
    if not stored:
        return []
    count = key.interval.count(min(one.origin_ms for one in stored), market.last_ms(key))
    candles = market.tail(key, count)
    closes = dict(zip(candles["open_time"].dt.epoch("ms"), candles["close"], strict=True))
    return [_past(one, closes) for one in stored]


def _past(stored: StoredForecast, closes: dict[int, float]) -> PastForecast:
    frame = stored.frame()
    opened = frame["open_time"].dt.epoch("ms").to_list()
    names = [name for name in frame.columns if name.startswith(_QUANTILE)]
    return PastForecast(
        predictor=stored.model_digest,
        origin_ms=stored.origin_ms,
        made_ms=stored.saved_ms,
        last_close=stored.summary["last_close"],
        probability_up=stored.summary["probability_up"],
        fan=Fan(
            open_ms=opened,
            mean=frame["close_mean"].cast(pl.Float64).to_list(),
            quantiles={f"{int(name[len(_QUANTILE) :]) / 100:g}": frame[name].to_list() for name in names},
        ),
        came=[closes.get(ms) for ms in opened],
    )


def night_scores(board: Scoreboard, champion_models: ChampionModels, recipe: str | None) -> NightScores:
    """The summary of a recipe's last finished night; without a recipe, of the last night of all."""
    home = board.home
    names = (recipe,) if recipe else tuple(path.name for path in home.models.glob("*") if path.is_dir())
    files = [path for name in names for path in (home.models / name / "nights").glob("[!.]*.json")]
    if not files:
        raise Refused(
            404,
            f"Expected a finished night{f' of recipe {recipe}' if recipe else ''}, found none; `kronos run` makes one.",
        )
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    summary: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
    serving = next((one for one in champion_models.models if one.recipe == summary["recipe"]), None)
    return NightScores(
        recipe=summary["recipe"],
        night=summary["night"],
        finished_ms=newest.stat().st_mtime_ns // 1_000_000,
        verdict=summary["verdict"],
        reasons=summary["reasons"],
        leaderboard=summary["leaderboard"],
        live=_live(live_record(board, summary["recipe"], otherwise={REFERENCES_MODEL})),
        champion=facts_of(serving) if serving else None,
    )


def _live(record: Record) -> list[LiveScores]:
    """Each series, with the interval of its skill and what follows from that."""
    found = []
    for key, one in record.series.items():
        low, high = _interval(summed(record.parts[key], key.interval.next(0))) or (None, None)
        scores = LiveScores(
            symbol=key.name,
            interval=key.interval.name,
            skill_low=low,
            skill_high=high,
            against=f"{against(low, high)} the last value",
            **asdict(one),
        )
        found.append(scores)
    return found


def _interval(sums: tuple[NDArray[np.int64], Floats, Floats, int] | None) -> tuple[float, float] | None:
    """Of a skill, measured once for the same scores: a year of hourly ones takes seconds."""
    if sums is None:
        return None
    *columns, horizon_ms = sums
    return _measured(*(column.tobytes() for column in columns), horizon_ms)


@lru_cache(maxsize=64)
def _measured(
    origin_ms: bytes, crps: bytes, last_value: bytes, horizon_ms: int
) -> tuple[float, float] | None:
    return skill_interval(
        np.frombuffer(origin_ms, np.int64), np.frombuffer(crps), np.frombuffer(last_value), horizon_ms
    )
