"""Walk-forward of challenger, base, champion and baselines, and the gate's decision."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from prefect import task

from kronos_model.evaluation.competitors import Competitor, LastValue, ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.gate import GatePolicy, judge
from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.walk_forward import walk_forward
from kronos_model.forecaster import Forecaster
from kronos_model.pretrained import METADATA_FILE
from kronos_model.windows import WindowDataset
from storage.layout import Home
from tasks.policies import IDEMPOTENT
from tasks.progress import progress_bar
from tasks.refs import BuiltDataset, PairRef, ScoresRef, VerdictRef

__all__ = ["evaluate", "forecaster", "gate"]


@task(name="evaluate", task_run_name="evaluate", **IDEMPOTENT)
def evaluate(
    home: Home,
    dataset: BuiltDataset,
    models: dict[str, PairRef],
    config: EvaluationConfig,
    *,
    seed: int,
) -> ScoresRef:
    """Score `models` (challenger, base and perhaps champion) and the last value on the test range."""
    folder = home.jobs / f"evaluate-{_digest(dataset, models, config, seed)}"
    if not folder.exists():
        windows = WindowDataset.open(dataset.path)
        competitors: list[Competitor] = [
            ModelCompetitor(
                name=name,
                forecaster=forecaster(pair, dataset),
                config=config,
                seed=seed,
            )
            for name, pair in models.items()
        ]
        with progress_bar("evaluate") as progress:
            walk_forward(windows, [*competitors, LastValue()], config, progress=progress).save(folder)
    scores = Scores.load(folder)
    return ScoresRef(path=str(folder), origins=len(scores.origin_ms), leaderboard=tuple(leaderboard(scores)))


@task(name="gate", task_run_name="gate", **IDEMPOTENT)
def gate(scores: ScoresRef, policy: GatePolicy, *, champion: bool) -> VerdictRef:
    """Promote, keep or reject the challenger, with reasons in words."""
    decision = judge(Scores.load(Path(scores.path)), policy, champion="champion" if champion else None)
    return VerdictRef(verdict=decision.verdict, reasons=(*decision.reasons, _against_last_value(scores)))


def _against_last_value(scores: ScoresRef) -> str:
    """What the gate does not weigh and a reader wants to know: is it any good at all?"""
    row = next(row for row in scores.leaderboard if (row["model"], row["series"]) == ("challenger", "all"))
    comparison = "better" if row["skill"] > 0 else "worse"
    return f"for information: challenger is {comparison} than the last value, CRPS skill {row['skill']:+.3f}"


def forecaster(pair: PairRef, dataset: BuiltDataset | None) -> Forecaster:
    """A forecaster over `pair` with the settings recorded beside it; a base model has none and takes the dataset's
    normaliser."""
    recorded = (Path(pair.predictor) / METADATA_FILE).exists()
    normaliser = None if recorded or dataset is None else WindowDataset.open(dataset.path).normaliser
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Forecaster.load(Path(pair.tokenizer), Path(pair.predictor), normaliser=normaliser, device=device)


def _digest(dataset: BuiltDataset, models: dict[str, PairRef], config: EvaluationConfig, seed: int) -> str:
    pairs = {name: (pair.tokenizer_digest, pair.predictor_digest) for name, pair in models.items()}
    text = json.dumps([dataset.digest, pairs, repr(config), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
