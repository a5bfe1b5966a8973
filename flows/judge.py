"""Challenger against base, champion and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flows.config import knobs
from flows.finetune import Trained
from flows.night_identity import Night
from kronos_model.evaluation.leaderboard import arranged
from kronos_model.evaluation.scores import Scores
from kronos_model.hub import lineage_of
from kronos_model.postprocess import PostProcess
from storage.clipped_values import too_much_clipped
from storage.dataset import load_manifest
from storage.layout import Home
from storage.registry import Champion
from tasks.evaluate import evaluate, gate
from tasks.policies import within
from tasks.postprocess_words import figures
from tasks.refs import PairRef, ScoresRef, VerdictRef
from tasks.reports.fan_charts import draw_fans
from tasks.reports.night_report import Reported, report, summary_markdown
from tasks.reports.prefect_artifacts import (
    leaderboard_artifact,
    leaderboard_markdown,
    show_picture,
    show_text,
)
from tasks.tracking.runs import describe_run, log_artifact, log_metrics, log_table

__all__ = ["Judged", "champion_pair", "judge_challenger", "report_judgement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Scores, pictures of them by file name, and the gate's verdict."""

    scores: ScoresRef
    verdict: VerdictRef
    pictures: Mapping[str, Path]


def champion_pair(home: Home, champion: Champion) -> PairRef:
    """The champion as a pair of folders."""
    return PairRef(
        tokenizer=str(home.root / champion.tokenizer),
        tokenizer_digest=champion.tokenizer_digest,
        predictor=str(home.root / champion.predictor),
        predictor_digest=champion.predictor_digest,
        origin=f"champion since {champion.since[:10]}",
        lineage=lineage_of(home.root / champion.predictor),
    )


def judge_challenger(night: Night, challenger: PairRef, base: PairRef, champion: PairRef | None) -> Judged:
    """Walk all models forward over the test range, then ask the gate."""
    config, run = night.config, night.run
    models = {"challenger": challenger, "base": base} | ({"champion": champion} if champion else {})
    walk = within(evaluate, config.limits, "evaluate_h")
    scores = walk(night.home, night.dataset, models, config.evaluation, seed=config.seed)
    clipped = too_much_clipped(load_manifest(night.dataset.path))
    verdict = gate(scores, config.gate, champion=champion is not None, forbidden=clipped)
    scores = replace(scores, leaderboard=tuple(arranged(scores.leaderboard, verdict.served)))
    folder = Path(scores.path)
    fans = draw_fans(Scores.load(folder), verdict.served, folder / "fans.png")
    leaderboard_artifact(scores.leaderboard, verdict)
    show_picture(fans, "fans", f"Forecasts as served ({verdict.served}) over what then happened")
    log_artifact(run, fans, "figures")
    log_table(run, scores.leaderboard, "leaderboard.json")
    describe_run(run, leaderboard_markdown(scores.leaderboard, verdict))
    log_metrics(run, _pooled(scores))
    if fitted := PostProcess.load(Path(challenger.predictor)):
        log_metrics(run, figures(fitted))
    return Judged(scores=scores, verdict=verdict, pictures={"fans.png": fans})


def report_judgement(night: Night, judged: Judged, trained: Trained) -> Reported:
    """Charts and the page that holds them, in MLflow, in Prefect and beside the scores."""
    run = night.run
    reported = report(
        night.home,
        night.config.recipe,
        night=night.identity,
        dataset=night.dataset,
        stages=trained.stages,
        tokenizer=trained.tokenizer.reason,
        scores=judged.scores,
        verdict=judged.verdict,
        settings={knob.path: knob.value for knob in knobs(night.config)},
        run=run,
    )
    for picture in reported.pictures.values():
        log_artifact(run, picture, "figures")
    log_artifact(run, reported.page)
    show_picture(reported.pictures["skill.png"], "skill", "CRPS skill against the last value by step")
    show_text(summary_markdown(reported, judged.verdict, run), "report", f"Report of night {night.identity}")
    return reported


def _pooled(scores: ScoresRef) -> dict[str, float]:
    """The leaderboard's numbers over all series as metrics such as test/challenger/crps_bps."""
    return {
        f"test/{row['model']}/{name}": value
        for row in scores.leaderboard
        if row["series"] == "all"
        for name, value in row.items()
        if isinstance(value, float)
    }
