"""The facts of a model card, gathered from what a night leaves on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kronos_model.config import PRESETS
from kronos_model.hub import read_metadata
from kronos_model.publish import PublishConfig, repository_names
from storage.dataset import load_manifest
from storage.layout import Home
from tasks.refs import BuiltDataset, PairRef, ScoresRef, VerdictRef
from tasks.reports.model_card import CardFacts, calibration_in_words

__all__ = ["NightFacts", "card_facts"]


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
        calibration=calibration_in_words(Path(model.predictor)),
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
    if part == "tokenizer":
        repository, revision = preset.tokenizer_id, preset.tokenizer_revision
    else:
        repository, revision = preset.predictor_id, preset.predictor_revision
    return {repository: revision} if facts.pretrained and repository and revision else {}
