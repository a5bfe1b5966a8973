"""The model card: what a published model is, what it was judged on, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from kronos_model.config import PRESETS
from kronos_model.evaluation.config import PRETRAINING_END_MS
from kronos_model.hub import read_metadata
from kronos_model.postprocess import PostProcess
from kronos_model.publish_config import PublishConfig, repository_names
from storage.dataset import load_manifest
from storage.layout import Home
from tasks.postprocess_words import in_words
from tasks.refs import BuiltDataset, PairRef, ScoresRef, VerdictRef
from tasks.reports.rendering import day, render

__all__ = ["CardFacts", "NightFacts", "card_facts", "model_card"]

ALL_SERIES = "all"
CHALLENGER = "challenger"
_RESULTS = (  # column of the leaderboard, the metric's type and name, factor
    ("crps_bps", "crps", "CRPS of the log-return (bps)", 1),
    ("mae_bps", "mae", "MAE of the log-return (bps)", 1),
    ("rmse_bps", "rmse", "RMSE of the log-return (bps)", 1),
    ("direction", "directional_accuracy", "Right sign at the last step (%)", 100),
    ("coverage_50", "coverage", "Coverage of the 50 % interval (%)", 100),
    ("coverage_90", "coverage", "Coverage of the 90 % interval (%)", 100),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NightFacts:
    """What a card tells of the night that made the model."""

    recipe: str
    symbols: tuple[str, ...]
    night: str
    preset: str
    pretrained: bool
    settings: Mapping[str, object]
    dataset: BuiltDataset
    scores: ScoresRef
    verdict: VerdictRef


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """All that the card says."""

    part: Literal["tokenizer", "predictor"]
    recipe: str
    night: str
    series: tuple[str, ...]
    interval: str
    first_ms: int
    last_ms: int
    test_from_ms: int
    dataset_digest: str
    lookback: int
    horizon: int
    max_context: int
    normaliser: str
    base_models: Mapping[
        str, str
    ]  # Hub ids of what training started from, with revisions; empty from scratch
    postprocessing: str  # what is done to the paths before they are served, in words; empty where nothing is
    settings: Mapping[str, object]  # of training and sampling, in the order they are to be read
    leaderboard: Sequence[Mapping[str, Any]]  # rows of evaluation.leaderboard
    verdict: str
    reasons: tuple[str, ...]
    tokenizer_repo: str  # Hub id, or the absolute path of a folder
    predictor_repo: str
    of_kronos: bool = False  # descended from a checkpoint of Kronos's own, also by way of other fine-tunings
    pictures: tuple[str, ...] = ()  # file names, in the repository, of those to show

    @property
    def contaminated(self) -> bool:
        """Whether the test range overlaps what the weights were once pre-trained on."""
        return (self.of_kronos or bool(self.base_models)) and self.test_from_ms < PRETRAINING_END_MS

    @property
    def name(self) -> str:
        """What a reader calls the model."""
        return f"{self.recipe} Kronos {self.part}"


def card_facts(
    home: Home,
    part: Literal["tokenizer", "predictor"],
    model: PairRef,
    facts: NightFacts,
    config: PublishConfig,
    pictures: Iterable[str],
) -> CardFacts:
    """The card of one part of `model`."""
    manifest = load_manifest(facts.dataset.path)
    metadata = read_metadata(Path(model.predictor)) or {}
    tokenizer_repo, predictor_repo = (
        f"{config.namespace}/{name}" if config.namespace else str(home.hub / name)
        for name in repository_names(config, facts.recipe, facts.symbols)
    )
    return CardFacts(
        part=part,
        recipe=facts.recipe,
        night=facts.night,
        series=tuple(series["key"] for series in manifest["series"]),
        interval=manifest["interval"],
        first_ms=min(series["first_ms"] for series in manifest["series"]),
        last_ms=max(series["last_ms"] for series in manifest["series"]),
        test_from_ms=manifest["test_from_ms"],
        dataset_digest=facts.dataset.digest,
        lookback=manifest["lookback"],
        horizon=manifest["horizon"],
        max_context=metadata["max_context"],
        normaliser=manifest["normaliser"]["kind"],
        base_models=_base_models(facts, part),
        postprocessing="" if (told := PostProcess.load(Path(model.predictor))) is None else in_words(told),
        settings=facts.settings,
        leaderboard=facts.scores.leaderboard,
        verdict=facts.verdict.verdict,
        reasons=facts.verdict.reasons,
        tokenizer_repo=tokenizer_repo,
        predictor_repo=predictor_repo,
        of_kronos=model.lineage == "kronos",
        pictures=tuple(pictures),
    )


def _base_models(facts: NightFacts, part: str) -> dict[str, str]:
    """What this part was fine-tuned from, with its revision; nothing for weights from scratch or from a folder."""
    preset = PRESETS[facts.preset]
    repository, revision = getattr(preset, f"{part}_id"), getattr(preset, f"{part}_revision")
    return {repository: revision} if facts.pretrained and repository and revision else {}


def model_card(facts: CardFacts) -> str:
    """README.md of a repository, metadata included."""
    names = list(dict.fromkeys(str(row["series"]) for row in facts.leaderboard))
    # One series says the same as all of them.
    shown = names if len(names) > 2 else names[:1]
    text = render(
        "model_card.md",
        facts=facts,
        bases=" and ".join(f"{name} (revision `{at[:12]}`)" for name, at in facts.base_models.items()),
        counterpart="predictor" if facts.part == "tokenizer" else "tokenizer",
        counterpart_repo=facts.predictor_repo if facts.part == "tokenizer" else facts.tokenizer_repo,
        leaderboards={name: [row for row in facts.leaderboard if row["series"] == name] for name in shown},
        pretraining_end_ms=PRETRAINING_END_MS,
        frequency=_frequency(facts.interval),
        folders={one: _folder(getattr(facts, f"{one}_repo")) for one in ("tokenizer", "predictor")},
    )
    return f"---\n{_metadata(facts).to_yaml()}\n---\n{text}"


def _metadata(facts: CardFacts) -> ModelCardData:
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if facts.base_models else {}
    symbols = [name.split(":")[-1].lower() for name in facts.series[:5]]
    return ModelCardData(
        license="mit",
        library_name="kronos-nightly",
        pipeline_tag="time-series-forecasting",
        base_model=list(facts.base_models) or None,
        model_name=facts.name,
        eval_results=_eval_results(facts),
        tags=["kronos", "finance", "candlestick", "binance", facts.part, facts.interval, *symbols],
        **relation,
        kronos_nightly={
            "recipe": facts.recipe,
            "night": facts.night,
            "series": list(facts.series),
            "interval": facts.interval,
            "data_from": day(facts.first_ms),
            "data_to": day(facts.last_ms),
            "test_from": day(facts.test_from_ms),
            "dataset_digest": facts.dataset_digest,
            "base_revisions": dict(facts.base_models),
            "postprocessed": bool(facts.postprocessing),
            "contaminated": facts.contaminated,
            "verdict": facts.verdict,
        },
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """The challenger's scores over all series, and its skill against each of the others."""
    rows = {row["model"]: row for row in facts.leaderboard if row["series"] == ALL_SERIES}
    ours = rows[CHALLENGER]
    values = [
        (kind, name, ours[key] * scale) for key, kind, name, scale in _RESULTS if ours.get(key) is not None
    ]
    values += [
        (
            "crps_skill",
            f"CRPS skill against {model.replace('_', ' ')}",
            1 - ours["crps_bps"] / row["crps_bps"],
        )
        for model, row in rows.items()
        if model != CHALLENGER and row["crps_bps"] > 0
    ]
    return [
        EvalResult(
            task_type="time-series-forecasting",
            task_name=f"Walk-forward, {facts.horizon} steps of {facts.interval}, {ours['origins']} origins",
            dataset_type="binance-klines",
            dataset_name=f"Binance klines, {', '.join(facts.series)}",
            dataset_config=facts.interval,
            dataset_split=f"{day(facts.test_from_ms)} to {day(facts.last_ms)}",
            dataset_revision=facts.dataset_digest,
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(value), 6),
        )
        for kind, name, value in values
    ]


def _frequency(interval: str) -> str:
    """The interval as pandas spells it."""
    count, unit = int(interval[:-1]), interval[-1]
    names = {"s": "s", "m": "min", "h": "h", "d": "D", "M": "MS"}
    return f"{7 * count}D" if unit == "w" else f"{count}{names[unit]}"


def _folder(repo: str) -> str:
    """The expression that yields a repository's folder."""
    return f'Path("{repo}")' if Path(repo).is_absolute() else f'Path(snapshot_download("{repo}"))'
