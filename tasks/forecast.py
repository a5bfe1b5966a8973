"""The next horizon of every series from what is served, stored and drawn, and scored later."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from prefect import task

from kronos_model.context import history_bars
from kronos_model.evaluation.stored_scores import score_stored
from kronos_model.features import CLOSE, FEATURES
from kronos_model.outlook import Outlook, outlook_of, quantile_label
from kronos_model.postprocess import NETWORK
from kronos_model.sampling import SamplingConfig
from kronos_model.served import Served, context_of
from kronos_model.served_words import REFERENCES_MODEL
from storage.errors import StorageError
from storage.forecast_files import write_forecasts
from storage.forecasts import AS_ASKED, ForecastQuestion, ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.past import Past, newest_past
from storage.schema import SeriesKey
from storage.scoreboard import Scoreboard, score_due
from tasks.code_digest import code_digest
from tasks.live_record import Live, live_board
from tasks.policies import IDEMPOTENT
from tasks.refs import FailureRef, ForecastRef, ForecastsRef, PairRef
from tasks.reports.fan_charts import draw_forecast

__all__ = ["IncompleteForecast", "complete", "export_forecasts", "forecast", "score_live"]

_HOW_FAST = ("rows", "acceleration")  # of the settings of sampling, those that do not change the paths
logger = logging.getLogger(__name__)


class IncompleteForecast(StorageError):  # noqa: N818  # it says what happened
    """Some series could not be forecast; the forecasts of the others are stored."""

    def __init__(self, message: str, forecasts: ForecastsRef) -> None:
        super().__init__(message)
        self.forecasts = forecasts


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """What is served, how its paths are drawn, and by what it is named."""

    served: Served
    sampling: SamplingConfig
    tokenizer_digest: str
    predictor_digest: str

    @property
    def alone(self) -> bool:
        """Whether every path is the network's."""
        return self.served.shares(self.sampling) == {NETWORK: 1.0}


@task(name="forecast", task_run_name="forecast", **IDEMPOTENT)
def forecast(
    home: Home,
    keys: Sequence[SeriesKey],
    model: PairRef | None,
    config: SamplingConfig,
    *,
    lookback: int,
    horizon: int,
    seed: int,
    as_judged: bool = True,
    as_recipe: bool = True,
) -> ForecastsRef:
    """Forecast all `keys` in one call of the sampler; a forecast that is already stored is not made again.

    Without a model the references forecast. `as_judged` draws with the settings that the model's post-processing was
    fitted for, if it has one, in place of those of `config`; `as_recipe` says that the number of paths and the seed
    are the recipe's own: a record counts that one of several forecasts of one origin. A series that is stale or has a
    hole in its lookback is left out, with the reason.
    """
    store = ForecastStore(home.forecasts)
    pasts, failures = _pasts(home, keys, lookback, horizon)
    served = _load(model, config, lookback, as_judged=as_judged)
    asked = {past.key: _question(past, served, seed) for past in pasts}
    missing = [past for past in pasts if store.find(asked[past.key]) is None]
    told = {"as_recipe": as_recipe}
    seconds = _make(home, store, missing, asked, served, told, seed=seed) if missing else 0.0
    made = {past.key for past in missing}
    return ForecastsRef(
        forecasts=tuple(_reference(home, store, asked[past.key], made=past.key in made) for past in pasts),
        failures=failures,
        seconds=seconds,
    )


def complete(forecasts: ForecastsRef) -> ForecastsRef:
    """The same; IncompleteForecast with every reason where a series was left out."""
    if not forecasts.failures:
        return forecasts
    count = len(forecasts.failures) + len(forecasts.forecasts)
    reasons = " ".join(f"{one.series}: {one.reason}" for one in forecasts.failures)
    rest = "none was made" if not forecasts.forecasts else "the others are stored"
    raise IncompleteForecast(
        f"{len(forecasts.failures)} of {count} series not forecast, {rest}: {reasons}", forecasts
    )


def export_forecasts(home: Home, forecasts: Sequence[ForecastRef], target: Path) -> int:
    """Write these stored forecasts to a .csv, .json or .parquet file; how many steps there are in all."""
    store = ForecastStore(home.forecasts)
    stored = [store.read(SeriesKey.parse(one.series, one.interval), Path(one.path)) for one in forecasts]
    return write_forecasts(stored, target)


@task(name="score live forecasts", task_run_name="score live forecasts", **IDEMPOTENT)
def score_live(home: Home, recipe: str, *, under_way: Mapping[str, Path] | None = None) -> Live:
    """What has become due scored and kept, and the record; drift is a warning in the log."""
    score_due(Scoreboard(home, score_stored))
    live = live_board(home, recipe, under_way=under_way)
    for warning in live.warnings:
        logger.warning("%s", warning)
    return live


def _pasts(
    home: Home, keys: Sequence[SeriesKey], lookback: int, horizon: int
) -> tuple[list[Past], tuple[FailureRef, ...]]:
    """What the sampler continues, and which series it cannot."""
    lake, ledger = Lake(home.lake), Ledger(home.lake)
    pasts, failures = [], []
    for key in keys:
        try:
            history = history_bars(lookback, key.interval.next(0))
            past = newest_past(lake, ledger, key, lookback=lookback, horizon=horizon, history=history)
            pasts.append(past)
        except StorageError as error:
            logger.warning("%s is not forecast: %s", key, error)
            failures.append(FailureRef(series=key.name, reason=str(error)))
    return pasts, tuple(failures)


def _load(model: PairRef | None, config: SamplingConfig, lookback: int, *, as_judged: bool) -> _Model:
    """What is served; a word in the log where it is not what was judged."""
    if model is None:
        served = Served.references(lookback)
        for note in served.notes:
            logger.warning("Of the references, %s.", note)
        return _Model(served=served, sampling=config, tokenizer_digest="", predictor_digest=REFERENCES_MODEL)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    served = Served.load(Path(model.tokenizer), Path(model.predictor), name=model.origin, device=device)
    sampling = served.as_judged(config) if as_judged else config
    if served.postprocess is not None and served.applied(sampling) is None:
        logger.warning(
            "The forecast's temperature, top_k and top_p are not those that the post-processing of the %s was fitted "
            "for, so the network is served as it draws; leave them out to get what was judged.",
            model.origin,
        )
    asked = "" if as_judged else AS_ASKED
    return _Model(
        served=served,
        sampling=sampling,
        tokenizer_digest=model.tokenizer_digest,
        predictor_digest=model.predictor_digest + asked,
    )


def _make(
    home: Home,
    store: ForecastStore,
    pasts: list[Past],
    asked: Mapping[SeriesKey, ForecastQuestion],
    model: _Model,
    told: Mapping[str, Any],
    *,
    seed: int,
) -> float:
    """Sample, store with what else is `told`, and draw; the seconds that sampling took."""
    started = time.perf_counter()
    made = model.served.paths(context_of(pasts), model.sampling, seed)
    seconds = time.perf_counter() - started
    logger.info(
        "Sampled %d series x %d paths x %d candles in %.2f s by the %s",
        *made.paths.shape[:3],
        seconds,
        model.served.name,
    )
    for past, paths in zip(pasts, made.paths, strict=True):
        outlook, question = outlook_of(paths, past.last_close), asked[past.key]
        draw_forecast(past, outlook, _figure(home, question))
        frame, summary = _frame(past, outlook), {**_summary(past, outlook, model), **told}
        # Last: what is stored is not made again.
        store.save(question, frame, summary, closes=paths[..., CLOSE], member=made.member)
    return seconds


def _question(past: Past, model: _Model, seed: int) -> ForecastQuestion:
    return ForecastQuestion(
        key=past.key,
        origin_ms=past.origin_ms,
        tokenizer_digest=model.tokenizer_digest,
        model_digest=model.predictor_digest,
        seen=_seen(past, model),
        lookback=len(past.open_time),
        horizon=len(past.future),
        sampling=_drawn(model),
        seed=seed,
        code=code_digest(),
    )


def _seen(past: Past, model: _Model) -> str:
    """Digest of the candles behind a forecast: a network sees its lookback, references reach further back."""
    seen = past.features.tobytes() if model.alone else past.features.tobytes() + past.history.tobytes()
    return hashlib.sha256(seen).hexdigest()[:16]


def _drawn(model: _Model) -> dict[str, Any]:
    """What decides which paths are drawn; of the references their number alone."""
    if model.served.forecaster is None:
        return {"samples": model.sampling.samples}
    return {name: value for name, value in asdict(model.sampling).items() if name not in _HOW_FAST}


def _frame(past: Past, outlook: Outlook) -> pl.DataFrame:
    """One row per step: mean candle, quantiles of the close, P(up), expected return and volatility."""
    columns = {f"{name}_mean": row for name, row in zip(FEATURES, outlook.means, strict=True)}
    for name in ("probability_up", "expected_return", "volatility"):
        columns[name] = getattr(outlook, name)
    for level, row in zip(outlook.levels, outlook.quantiles, strict=True):
        columns[f"close_{quantile_label(level)}"] = row
    times = pl.Series("open_time", past.future).cast(pl.Datetime("ms", "UTC"))
    steps = pl.Series("step", np.arange(1, len(past.future) + 1, dtype=np.int32))
    return pl.DataFrame([times, steps, *(pl.Series(name, values) for name, values in columns.items())])


def _summary(past: Past, outlook: Outlook, model: _Model) -> dict[str, Any]:
    """The end of the horizon."""
    return {
        "last_close": past.last_close,
        "horizon_end_ms": past.key.interval.close(int(past.future[-1])),
        "close_mean": float(outlook.mean[-1]),
        "close_low": float(outlook.quantile(0.05)[-1]),
        "close_high": float(outlook.quantile(0.95)[-1]),
        "probability_up": float(outlook.probability_up[-1]),
        "expected_return": float(outlook.expected_return[-1]),
        "volatility": float(outlook.volatility[-1]),
        "samples": outlook.samples,
        "model": model.served.name,
        "weights": model.served.shares(model.sampling),
        "tokenizer_digest": model.tokenizer_digest,
    }


def _figure(home: Home, question: ForecastQuestion) -> Path:
    return home.forecasts / "figures" / f"{question.key.slug}-{question.name}.png"


def _reference(home: Home, store: ForecastStore, question: ForecastQuestion, *, made: bool) -> ForecastRef:
    found = store.find(question)
    assert found is not None, "stored above"
    told = ("last_close", "horizon_end_ms", "close_mean", "close_low", "close_high", "probability_up")
    return ForecastRef(
        series=question.key.name,
        interval=str(question.key.interval),
        model_digest=question.model_digest,
        path=str(found.path),
        figure=str(_figure(home, question)),
        origin_ms=question.origin_ms,
        **{
            name: found.summary[name] for name in (*told, "expected_return", "volatility", "model", "samples")
        },
        made=made,
    )
