"""From a judged challenger to repositories people load, and to the champion that serves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from prefect import task

from kronos_model.card import model_card
from kronos_model.jobs import Stage
from kronos_model.publish import (
    PublishConfig,
    Published,
    assemble_repository,
    check_token,
    publish_local,
    publish_to_hub,
    repository_names,
)
from storage.layout import Home
from storage.registry import Champion, keep_model, write_champion
from tasks.cards import NightFacts, card_facts
from tasks.policies import IDEMPOTENT
from tasks.refs import PairRef, PublishedRef, VerdictRef

__all__ = ["check_publishing", "promote", "publish", "wanted"]


def wanted(config: PublishConfig, verdict: VerdictRef) -> bool:
    """Whether this verdict is published under this policy."""
    return config.policy == "always" or (config.policy == "promoted" and verdict.verdict == "promote")


@task(name="check publishing", task_run_name="check publishing", **IDEMPOTENT)
def check_publishing(config: PublishConfig) -> None:
    """Fail before hours of training, not after, when a namespace is set and the Hub does not take the token."""
    if config.namespace and config.policy != "never":
        check_token(_token(), os.environ.get("HF_ENDPOINT"), namespace=config.namespace)


@task(name="publish", task_run_name="publish", **IDEMPOTENT)
def publish(
    home: Home,
    model: PairRef,
    config: PublishConfig,
    *,
    facts: NightFacts,
    pictures: Mapping[str, Path],
) -> tuple[PublishedRef, ...]:
    """Write both repositories under hub/ and, with a namespace and a token, commit them to the Hub."""
    tokenizer_name, predictor_name = repository_names(config, facts.recipe)
    parts: tuple[tuple[Stage, str, str], ...] = (
        ("tokenizer", model.tokenizer, tokenizer_name),
        ("predictor", model.predictor, predictor_name),
    )
    published = []
    for part, folder, name in parts:
        card = model_card(card_facts(home, part, model, facts, config))
        with tempfile.TemporaryDirectory() as scratch:
            draft = assemble_repository(Path(folder), Path(scratch) / name, card=card, pictures=pictures)
            publish_local(draft, home.hub, name)
            uploaded = _upload(draft, name, config, facts.night)
        published.append(_published_ref(name, home.hub / name, uploaded))
    return tuple(published)


@task(name="promote", task_run_name="promote", **IDEMPOTENT)
def promote(
    home: Home,
    recipe: str,
    model: PairRef,
    *,
    night: str,
    mlflow_run: str,
    verdict: VerdictRef,
    published: tuple[PublishedRef, ...],
    previous: Champion | None,
) -> Champion:
    """Keep a copy of the challenger and make it the champion: the last write of a promotion."""
    parts = {"tokenizer": Path(model.tokenizer), "predictor": Path(model.predictor)}
    kept = keep_model(home, recipe, f"{model.tokenizer_digest}-{model.predictor_digest}", parts)
    champion = Champion(
        tokenizer=kept["tokenizer"],
        tokenizer_digest=model.tokenizer_digest,
        predictor=kept["predictor"],
        predictor_digest=model.predictor_digest,
        night=night,
        mlflow_run=mlflow_run,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        reasons=verdict.reasons,
        published=tuple(asdict(one) for one in published),
        previous=previous,
    )
    write_champion(home, recipe, champion)
    return champion


def _upload(folder: Path, name: str, config: PublishConfig, night: str) -> Published | None:
    if not config.namespace:
        return None
    return publish_to_hub(
        folder,
        f"{config.namespace}/{name}",
        token=_token(),
        private=config.private,
        tag=f"night-{night}",
        message=f"Night {night}",
        endpoint=os.environ.get("HF_ENDPOINT"),
    )


def _token() -> str:
    return os.environ.get("HF_TOKEN", "")


def _published_ref(name: str, path: Path, uploaded: Published | None) -> PublishedRef:
    if uploaded is None:
        return PublishedRef(name=name, path=str(path))
    return PublishedRef(
        name=name, path=str(path), url=uploaded.url, revision=uploaded.revision, uploaded=uploaded.uploaded
    )
