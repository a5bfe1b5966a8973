"""The whole night: ingest, dataset, tokenizer, predictor, evaluate, gate, publish, forecast."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.config import RunConfig, config_digest, knobs
from flows.environment import open_home
from flows.finetune import Trained, build_dataset, postprocessed, train_challenger
from flows.forecast import forecast_series
from flows.forms import RunSettings, SeriesName, Unchanged
from flows.home_access import with_home
from flows.ingest import ingest_series
from flows.judge import Judged, champion_pair, judge_challenger, report_judgement
from flows.night_identity import Night, night_identity, tracked
from flows.recipes import IntervalName, RecipeName, configure
from flows.run_names import run_name
from storage.layout import Home
from storage.registry import Champion, read_champion, read_night, write_night
from tasks.forecast import score_live
from tasks.policies import within
from tasks.promotion import mend, promote, register
from tasks.publish import check_publishing, publish, wanted
from tasks.refs import ForecastsRef, IngestRef, PairRef, PublishedRef, RunRef
from tasks.reports.model_card import NightFacts
from tasks.reports.prefect_artifacts import show_published
from tasks.tracking.runs import log_artifact, log_metrics
from tasks.train import base_model

__all__ = ["nightly", "run_night"]

logger = logging.getLogger(__name__)


@flow(name="nightly", flow_run_name=run_name)
def nightly(
    recipe: RecipeName = "demo",
    series: list[SeriesName] | Unchanged = None,
    interval: IntervalName | Unchanged = None,
    start: date | Unchanged = None,
    end: date | Unchanged = None,
    settings: RunSettings = None,
) -> dict[str, Any] | State:
    """Download, train, judge, publish and forecast; a night whose inputs have not changed only says so.

    Args:
        recipe: Named configuration to run; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. Unchanged: the recipe's, or else since the listing.
        end: First day not to use, UTC. Unchanged: the recipe's, or else up to the newest closed candle.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings, series=series, interval=interval, start=start, end=end)
    home = open_home()
    return with_home(home, f"nightly {recipe}", lambda: run_night(home, config))


def run_night(home: Home, config: RunConfig, *, ingested: IngestRef | None = None) -> dict[str, Any]:
    """Every step of a night in order; each recognises what an earlier, interrupted run has finished.

    `ingested` is given to one of several nights at once: who began them has ingested for all and closed dead runs.
    """
    alone = ingested is None
    check_publishing(config.publish)
    mend(home, config.recipe, config.publish)
    base = base_model(home, config.model.preset, config.model.weights, config.seed)
    ingested = ingested or ingest_series(home, config)
    dataset = build_dataset(home, config)
    identity = night_identity(config, dataset, base)
    candles = [asdict(one) for one in ingested.series]
    finished = read_night(home, config.recipe, identity)
    if finished is not None:
        logger.info("Nothing new since night %s: same candles, same settings; nothing was trained.", identity)
        return {**finished, "nothing_new": True, "candles": candles}
    with tracked(home, config, dataset, identity, alone=alone) as run:
        night = Night(home=home, config=config, dataset=dataset, identity=identity, run=run)
        for path in filter(None, (ingested.report, ingested.picture)):
            log_artifact(run, path, "ingest")
        trained = train_challenger(home, config, dataset, base, run)
        base = postprocessed(home, config, dataset, base, "base")
        outcome = _decide(night, base, trained)
        serving = None if outcome.champion is None else champion_pair(home, outcome.champion)
        forecasts = forecast_series(home, config, serving)
        _record(run, forecasts, outcome.published)
        live = score_live(home, config.recipe, under_way={identity: Path(dataset.path)})
        log_metrics(run, live.metrics())
    summary = {"candles": candles, **_summary(night, trained, outcome, forecasts)}
    write_night(home, config.recipe, identity, summary)
    return {**summary, "nothing_new": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    judged: Judged
    page: str  # report.html
    published: tuple[PublishedRef, ...]
    champion: Champion | None  # who serves now


def _decide(night: Night, base: PairRef, trained: Trained) -> _Outcome:
    """Judge against the champion, publish and promote."""
    home, config, run = night.home, night.config, night.run
    serving = read_champion(home, config.recipe)
    # A challenger that serves already (a night cut off after its promotion, or run again to publish elsewhere) is
    # judged against whom it replaced.
    opponent = serving.previous if serving and _is(serving, trained.challenger) else serving
    rival = champion_pair(home, opponent) if opponent else None
    judged = judge_challenger(night, trained.challenger, base, rival)
    reported = report_judgement(night, judged, trained)
    register(
        home,
        config.recipe,
        trained.challenger,
        run,
        night=night.identity,
        verdict=judged.verdict,
        dataset=night.dataset,
        config_digest=config_digest(config),
        sampling=config.forecast,
        seed=config.seed,
    )
    published: tuple[PublishedRef, ...] = ()
    if wanted(config.publish, judged.verdict):
        facts = _facts(night, judged)
        losses = Path(trained.stages[1].job) / "losses.png"
        pictures = {**judged.pictures, "skill.png": reported.pictures["skill.png"], "losses.png": losses}
        bounded = within(publish, config.limits, "publish_h")
        published = bounded(home, trained.challenger, config.publish, facts=facts, pictures=pictures)
    champion = serving
    if judged.verdict.verdict == "promote":
        champion = promote(
            home,
            config.recipe,
            trained.challenger,
            night=night.identity,
            mlflow_run=run.run_id,
            verdict=judged.verdict,
            published=published,
            judged_against=opponent,
            serving=serving,
            config=config.publish,
        )
    return _Outcome(judged=judged, page=reported.page, published=published, champion=champion)


def _is(champion: Champion, pair: PairRef) -> bool:
    return (champion.tokenizer_digest, champion.predictor_digest) == (
        pair.tokenizer_digest,
        pair.predictor_digest,
    )


def _facts(night: Night, judged: Judged) -> NightFacts:
    config = night.config
    shown = ("seed", "start", "end", "model", "tokenizer", "predictor", "evaluation")
    return NightFacts(
        recipe=config.recipe,
        symbols=tuple(key.symbol for key in config.keys()),  # noqa: SIM118, not a mapping
        night=night.identity,
        preset=config.model.preset,
        pretrained=config.model.weights == "pretrained",
        settings={knob.path: knob.value for knob in knobs(config) if knob.path.partition(".")[0] in shown},
        dataset=night.dataset,
        scores=judged.scores,
        verdict=judged.verdict,
    )


def _record(run: RunRef, forecasts: ForecastsRef, published: tuple[PublishedRef, ...]) -> None:
    """Forecasts into the MLflow run, links into the Prefect run."""
    for one in forecasts.forecasts:
        log_artifact(run, one.figure, "figures")
    if forecasts.seconds:
        log_metrics(run, {"forecast/seconds": forecasts.seconds})
    show_published(published)


def _summary(night: Night, trained: Trained, outcome: _Outcome, forecasts: ForecastsRef) -> dict[str, Any]:
    """The night in plain values, as stored and as the CLI shows it; its candles come on top."""
    verdict, dataset = outcome.judged.verdict, night.dataset
    return {
        "recipe": night.config.recipe,
        "night": night.identity,
        "dataset": {"path": str(dataset.path), "digest": dataset.digest, "windows": dataset.windows},
        "warnings": list(dataset.warnings),
        "stages": [asdict(one) for one in trained.stages],
        "challenger": asdict(trained.challenger),
        "tokenizer": trained.tokenizer.reason,
        "leaderboard": list(outcome.judged.scores.leaderboard),
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "report": outcome.page,
        "published": [asdict(one) for one in outcome.published],
        "forecasts": [asdict(one) for one in forecasts.forecasts],
        "not_forecast": [asdict(one) for one in forecasts.failures],
        "mlflow_run": night.run.run_id,
    }
