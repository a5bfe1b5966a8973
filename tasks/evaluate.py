"""Walk-forward of challenger, base, champion and baselines, and the gate's decision."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from prefect import task

from kronos_model.context import history_bars
from kronos_model.evaluation.baselines import make_baselines
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.config import PRETRAINING_END_MS, EvaluationConfig
from kronos_model.evaluation.gate import GatePolicy, judge
from kronos_model.evaluation.intervals import against
from kronos_model.evaluation.leaderboard import CONFIDENCE, leaderboard
from kronos_model.evaluation.leaks import check_not_trained_on
from kronos_model.evaluation.postprocessing import fit_postprocess
from kronos_model.evaluation.scores import QUANTILES, RAW, Scores
from kronos_model.evaluation.tokenizer_gate import TokenizerDecision, judge_tokenizer, read_quality
from kronos_model.evaluation.walk_forward import Forecasts, walk_forward
from kronos_model.files import METADATA_FILE, MODEL_FILES, POSTPROCESS_FILE, model_digest
from kronos_model.forecaster import Forecaster
from kronos_model.hub import read_metadata
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import REFERENCES
from kronos_model.served_words import postprocess_in_words
from kronos_model.windows import WindowDataset
from storage.atomic import atomic_directory, remove_directory
from storage.evaluations import ForecastTable, forecast_frame, paths_frame
from storage.layout import Home
from storage.schema import utc_text
from tasks.code_digest import code_digest
from tasks.policies import IDEMPOTENT
from tasks.postprocess_words import steps_in_words
from tasks.progress import progress_bar
from tasks.refs import BuiltDataset, PairRef, ScoresRef, TrainedRef, VerdictRef

__all__ = ["evaluate", "forecaster", "gate", "postprocess", "tokenizer_gate"]

logger = logging.getLogger(__name__)


@task(name="postprocess", task_run_name="postprocess {role}", **IDEMPOTENT)
def postprocess(
    home: Home, dataset: BuiltDataset, pair: PairRef, config: EvaluationConfig, *, role: str, seed: int
) -> PairRef:
    """`pair`, the base or the challenger, with its post-processing beside the predictor.

    It is fitted on the validation range: how the network samples, what is left of its location, its weight in the pool
    with the references, and the spread of it. The same pair where that is switched off, or where it was done already.
    """
    if not config.postprocess or _fitted_for(dataset, pair):
        return pair
    folder = home.jobs / f"postprocessed-{_digest(dataset, {'model': pair}, config, seed)}"
    predictor = folder / "predictor"
    if not folder.exists():
        model = ModelCompetitor(name="model", forecaster=forecaster(pair, dataset), config=config, seed=seed)
        with progress_bar("postprocess") as progress:
            found, notes = fit_postprocess(WindowDataset.open(dataset.path), model, progress=progress)
        for note in notes:
            logger.warning("A reference of %s's pool is missing: %s.", role, note)
        with atomic_directory(folder) as draft:
            (draft / predictor.name).mkdir()
            for name in (*MODEL_FILES, METADATA_FILE):
                _link(Path(pair.predictor) / name, draft / predictor.name / name)
            found.save(draft / predictor.name)
    _tell(role, predictor)
    return replace(pair, predictor=str(predictor), predictor_digest=model_digest(predictor))


def _fitted_for(dataset: BuiltDataset, pair: PairRef) -> bool:
    """Whether post-processing for windows like these lies beside the predictor; one for others is fitted anew."""
    if not (Path(pair.predictor) / POSTPROCESS_FILE).exists():
        return False
    found, windows = PostProcess.load(Path(pair.predictor)), WindowDataset.open(dataset.path)
    asked = (windows.horizon, windows.lookback, windows.manifest["interval"])
    return found is not None and (found.horizon, found.lookback, found.interval) == asked


def _tell(role: str, predictor: Path) -> None:
    found = PostProcess.load(predictor)
    assert found is not None  # it was written there
    for sentence in steps_in_words(found):
        logger.info("Post-processing of the %s, %s.", role, sentence)
    logger.info("Post-processing of the %s: %s.", role, "; ".join(postprocess_in_words(found)) or "none")


@task(name="evaluate", task_run_name="evaluate", **IDEMPOTENT)
def evaluate(
    home: Home, dataset: BuiltDataset, models: dict[str, PairRef], config: EvaluationConfig, *, seed: int
) -> ScoresRef:
    """Score `models` (challenger, base and perhaps champion), their blends and the baselines on the test range.

    The folder of the scores also gets forecasts.parquet, one row per series, origin, step and model, and, where
    they are kept, paths.parquet.
    """
    folder = home.jobs / f"evaluate-{_digest(dataset, models, config, seed)}"
    work = folder.with_name(f"{folder.name}.work")
    if not folder.exists():
        _walk(folder, work, dataset, models, config, seed=seed)
    if work.exists():
        remove_directory(work)
    scores = Scores.load(folder)
    return ScoresRef(
        path=str(folder),
        origins=len(scores.origin_ms),
        leaderboard=tuple(leaderboard(scores)),
        notes=scores.notes,
    )


def _walk(
    folder: Path,
    work: Path,
    dataset: BuiltDataset,
    models: dict[str, PairRef],
    config: EvaluationConfig,
    *,
    seed: int,
) -> None:
    """Walk forward in the folder `work`, with which an interrupted run goes on, and put all into `folder` at once."""
    windows = WindowDataset.open(dataset.path)
    if windows.count("test"):
        check_not_trained_on(windows, _trained_until(models))
    competitors = [
        ModelCompetitor(name=name, forecaster=forecaster(pair, dataset), config=config, seed=seed)
        for name, pair in models.items()
    ]
    baselines, notes = make_baselines(
        config,
        interval_ms=windows.interval_ms,
        lookback=windows.lookback,
        history=history_bars(windows.lookback, windows.interval_ms),
        seed=seed,
        members=_members(competitors),
    )
    forecasts, paths = ForecastTable(work, "forecasts"), ForecastTable(work, "paths")

    def keep(batch: int, made: Forecasts) -> None:
        facts = {one.name: getattr(made, one.name) for one in fields(made)}
        drawn = facts.pop("paths")
        forecasts.write(batch, forecast_frame(levels=QUANTILES, **facts))
        if drawn:
            paths.write(batch, paths_frame(drawn, series=made.series, origin_ms=made.origin_ms))

    with progress_bar("evaluate") as progress:
        scores = walk_forward(
            windows,
            [*competitors, *baselines],
            config,
            notes=[*_notes(competitors), *notes],
            work=work,
            keep=keep,
            progress=progress,
        )
    with atomic_directory(folder) as draft:
        _marked(scores, models).save(draft)
        for table in (forecasts, paths):
            table.join(draft)


def _members(models: Sequence[ModelCompetitor]) -> tuple[str, ...]:
    """The references, and whom else some network is pooled with."""
    fitted = [one.postprocess for one in models if one.postprocess is not None]
    pooled = [name for one in fitted for name, weight in one.pool.items() if weight and name != NETWORK]
    return tuple(dict.fromkeys((*REFERENCES, *pooled)))


def _trained_until(models: dict[str, PairRef]) -> dict[str, int]:
    """Open time of the last candle that each model trained on, for those whose folder says so."""
    told = {name: read_metadata(Path(pair.predictor)) or {} for name, pair in models.items()}
    found = {name: one.get("training", {}).get("until_ms") for name, one in told.items()}
    return {name: until for name, until in found.items() if until is not None}


def _notes(models: Sequence[ModelCompetitor]) -> list[str]:
    """What a reader of the scores must know of the networks that may serve."""
    told = []
    for one in models:
        if one.name == "base" or not one.config.postprocess:
            continue
        if one.postprocess is None:
            told.append(
                f"{one.name} is not post-processed: it was judged before there was any, and as it draws"
            )
        else:
            told += [f"post-processing of {one.name}, {each}" for each in steps_in_words(one.postprocess)]
    return told


def _marked(scores: Scores, models: dict[str, PairRef]) -> Scores:
    """Scores of a range that Kronos may have been pre-trained on, with a note where that concerns these models."""
    if not scores.overlaps_pretraining:
        return scores
    since = (
        f"the first forecast is from {utc_text(int(scores.origin_ms.min()))}, before "
        f"{utc_text(PRETRAINING_END_MS)}, until when Kronos was pre-trained: "
    )
    notes = []
    if saw := [name for name, pair in models.items() if pair.lineage == "kronos"]:
        notes.append(f"{since}what the weights of {', '.join(saw)} score there is not out of sample")
    if unknown := [name for name, pair in models.items() if pair.lineage == "unknown"]:
        notes.append(
            f"{since}whether the weights of {', '.join(unknown)} descend from Kronos's is not recorded, so what "
            "they score there may not be out of sample"
        )
    return replace(scores, notes=(*notes, *scores.notes))


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name; a copy where the file system cannot. Weights are never written in place."""
    if not source.exists():
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@task(name="gate", task_run_name="gate", **IDEMPOTENT)
def gate(
    scores: ScoresRef, policy: GatePolicy, *, champion: bool, forbidden: Sequence[str] = ()
) -> VerdictRef:
    """Promote, keep or reject the challenger, with reasons in words.

    Where something about its data forbids a promotion, one sentence each, what would be promoted is rejected.
    """
    decision = judge(
        Scores.load(Path(scores.path)),
        policy,
        champion="champion" if champion else None,
        forbidden=forbidden,
    )
    told = (*_postprocessed(scores), _against_last_value(scores), *(f"note: {note}" for note in scores.notes))
    return VerdictRef(verdict=decision.verdict, reasons=(*decision.reasons, *told), served=decision.served)


@task(name="tokenizer gate", task_run_name="tokenizer gate", **IDEMPOTENT)
def tokenizer_gate(stage: TrainedRef, policy: GatePolicy, *, scratch: bool) -> TokenizerDecision:
    """Whether stage 2 may start from the fine-tuned tokenizer."""
    job = Path(stage.job)
    # Random weights spread bars over their codes at random: there is no use of codes yet that could be lost.
    drop = 1.0 if scratch else policy.codebook_drop
    decision = judge_tokenizer(read_quality(job, 0), read_quality(job, stage.best_step), codebook_drop=drop)
    logger.info("Tokenizer gate: %s.", decision.reason)
    return decision


def _postprocessed(scores: ScoresRef) -> list[str]:
    """What post-processing did to the network on the test range, before and after."""
    rows = {row["model"]: row for row in scores.leaderboard if row["series"] == "all"}
    before, after = rows.get("challenger" + RAW, rows["challenger"]), rows.get("blend")
    if after is None:
        return []
    return [
        f"for information: post-processing moved the coverage of the 90 % band from {100 * before['coverage_90']:.1f} "
        f"% of the network as it draws to {100 * after['coverage_90']:.1f} % of the blend and the CRPS from "
        f"{before['crps_bps']:.2f} to {after['crps_bps']:.2f} bps"
    ]


def _against_last_value(scores: ScoresRef) -> str:
    """What the gate does not weigh and a reader wants to know: is it any good at all?"""
    row = next(row for row in scores.leaderboard if (row["model"], row["series"]) == ("challenger", "all"))
    skill, low, high = (row[name] for name in ("skill", "skill_low", "skill_high"))
    found = f"for information: challenger {against(low, high)} the last value"
    if skill is None:
        return f"{found}: the market did not move, and there is no CRPS skill"
    if low is None or high is None:
        return f"{found}, CRPS skill {skill:+.3f}: the origins are too few for an interval"
    return f"{found}, CRPS skill {skill:+.3f}, {100 * CONFIDENCE:g} % interval {low:+.3f} to {high:+.3f}"


def forecaster(pair: PairRef, dataset: BuiltDataset | None) -> Forecaster:
    """A forecaster over `pair` with the settings recorded beside it; a base model has none and takes the dataset's
    normaliser."""
    recorded = (Path(pair.predictor) / METADATA_FILE).exists()
    normaliser = None if recorded or dataset is None else WindowDataset.open(dataset.path).normaliser
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Forecaster.load(Path(pair.tokenizer), Path(pair.predictor), normaliser=normaliser, device=device)


def _digest(dataset: BuiltDataset, models: dict[str, PairRef], config: EvaluationConfig, seed: int) -> str:
    pairs = {
        name: (pair.tokenizer_digest, pair.predictor_digest, pair.lineage) for name, pair in models.items()
    }
    text = json.dumps([code_digest(), dataset.digest, pairs, repr(config), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
