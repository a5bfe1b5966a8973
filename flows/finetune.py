"""Dataset, tokenizer, predictor: from the lake to a challenger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.config import RunConfig
from flows.environment import open_home
from flows.forms import RunSettings, SeriesName, Unchanged
from flows.home_access import with_home
from flows.night_identity import night_identity, tracked
from flows.recipes import IntervalName, RecipeName, configure
from flows.run_names import run_name
from kronos_model.evaluation.tokenizer_gate import TokenizerDecision
from storage.layout import Home
from tasks.dataset import build
from tasks.evaluate import postprocess, tokenizer_gate
from tasks.policies import within
from tasks.refs import BuiltDataset, PairRef, RunRef, TrainedRef
from tasks.reports.loss_chart import loss_chart
from tasks.reports.prefect_artifacts import show_picture, show_text
from tasks.tracking.runs import log_artifact, log_text
from tasks.train import base_model, train

__all__ = ["Trained", "build_dataset", "finetune", "postprocessed", "train_challenger"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Both finished stages and the model they gave."""

    challenger: PairRef
    stages: tuple[TrainedRef, TrainedRef]
    tokenizer: TokenizerDecision


@flow(name="finetune", flow_run_name=run_name)
def finetune(
    recipe: RecipeName = "demo",
    series: list[SeriesName] | Unchanged = None,
    interval: IntervalName | Unchanged = None,
    start: date | Unchanged = None,
    end: date | Unchanged = None,
    settings: RunSettings = None,
) -> Trained | State:
    """Fine-tune tokenizer and predictor on the candles in the lake, without judging or publishing.

    Args:
        recipe: Named configuration to train; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. Unchanged: the recipe's, or else since the listing.
        end: First day not to use, UTC. Unchanged: the recipe's, or else up to the newest closed candle.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings, series=series, interval=interval, start=start, end=end)
    home = open_home()
    return with_home(home, f"finetune {recipe}", lambda: _train(home, config))


def _train(home: Home, config: RunConfig) -> Trained:
    base = base_model(home, config.model.preset, config.model.weights, config.seed)
    dataset = build_dataset(home, config)
    with tracked(home, config, dataset, night_identity(config, dataset, base)) as run:
        return train_challenger(home, config, dataset, base, run)


def build_dataset(home: Home, config: RunConfig) -> BuiltDataset:
    """The dataset of `config` over what the lake holds."""
    bounded = within(build, config.limits, "dataset_h")
    return bounded(home, config.keys(), config.dataset, start_ms=config.start_ms(), end_ms=config.end_ms())


def postprocessed(home: Home, config: RunConfig, dataset: BuiltDataset, pair: PairRef, role: str) -> PairRef:
    """`pair` with its post-processing fitted on the validation range, as `evaluation` says."""
    bounded = within(postprocess, config.limits, "evaluate_h")
    return bounded(home, dataset, pair, config.evaluation, role=role, seed=config.seed)


def train_challenger(
    home: Home, config: RunConfig, dataset: BuiltDataset, base: PairRef, run: RunRef
) -> Trained:
    """Stage 1 from the base tokenizer, its gate, stage 2 on the tokens of the one that passed, post-processing."""
    shared: dict[str, Any] = {
        "dataset": dataset,
        "seed": config.seed,
        "threads": config.model.threads,
        "processes": config.model.processes,
        "run": run,
    }
    bounded = within(train, config.limits, "train_h")
    tokenizer = bounded(home, "tokenizer", start=base, config=config.tokenizer, **shared)
    gated = tokenizer_gate(tokenizer, config.gate, scratch=config.model.weights == "scratch")
    start = base
    if gated.use:
        start = replace(base, tokenizer=tokenizer.best, tokenizer_digest=tokenizer.digest)
    log_text(run, gated.reason + "\n", "tokenizer_gate.txt")
    show_text(gated.reason, "tokenizer-gate", "Which tokenizer stage 2 starts from")
    predictor = bounded(home, "predictor", start=start, config=config.predictor, **shared)
    jobs = {str(one.stage): Path(one.job) for one in (tokenizer, predictor)}
    losses = loss_chart(jobs).png(Path(predictor.job))
    show_picture(losses, "losses", "Training and validation loss of both stages")
    log_artifact(run, losses, "figures")
    challenger = replace(
        start,
        predictor=predictor.best,
        predictor_digest=predictor.digest,
        origin=f"fine-tuned from {base.origin}",
    )
    challenger = postprocessed(home, config, dataset, challenger, "challenger")
    return Trained(challenger=challenger, stages=(tokenizer, predictor), tokenizer=gated)
