"""From a judged challenger to repositories people load, and to the champion that serves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from prefect import task
from prefect.blocks.system import Secret

from kronos_model.hub_repository import Remote
from kronos_model.jobs import Stage
from kronos_model.local_hub import LocalRepository
from kronos_model.publish import (
    CHAMPION,
    ChampionTags,
    Published,
    TaggedRepository,
    assemble_repository,
    champion_tags,
    check_token,
    publish_local,
    publish_to_hub,
    tag_champion,
)
from kronos_model.publish_config import PublishConfig, repository_names
from storage.layout import Home
from storage.registry import Champion
from tasks.policies import IDEMPOTENT
from tasks.refs import PairRef, PublishedRef, VerdictRef
from tasks.reports.model_card import NightFacts, card_facts, model_card

__all__ = ["check_publishing", "hub_token", "mirror_champion", "misplaced_tags", "publish", "wanted"]


def wanted(config: PublishConfig, verdict: VerdictRef) -> bool:
    """Whether this verdict is published under this policy."""
    return config.policy == "always" or (config.policy == "promoted" and verdict.verdict == "promote")


@task(name="check publishing", task_run_name="check publishing", **IDEMPOTENT)
def check_publishing(config: PublishConfig) -> None:
    """Fail before hours of training, not after, when a namespace is set and the Hub does not take the token."""
    if config.namespace and config.policy != "never":
        check_token(hub_token(config), _endpoint(), namespace=config.namespace)


@task(name="publish", task_run_name="publish", **IDEMPOTENT)
def publish(
    home: Home, model: PairRef, config: PublishConfig, *, facts: NightFacts, pictures: Mapping[str, Path]
) -> tuple[PublishedRef, ...]:
    """Write both repositories under hub/ and, with a namespace and a token, commit them to the Hub."""
    names = repository_names(config, facts.recipe, facts.symbols)
    parts: tuple[tuple[Stage, str], ...] = (("tokenizer", model.tokenizer), ("predictor", model.predictor))
    published = []
    home.hub.mkdir(parents=True, exist_ok=True)
    for (part, folder), name in zip(parts, names, strict=True):
        card = model_card(card_facts(home, part, model, facts, config, pictures))
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=home.hub) as scratch:
            draft = assemble_repository(Path(folder), Path(scratch) / name, card=card, pictures=pictures)
            local = publish_local(draft, home.hub, name, tag=_night_tag(facts.night))
            uploaded = _upload(draft, name, config, facts.night)
        on_the_hub = asdict(uploaded) if uploaded else {}
        path, revision = str(home.hub / name), local.revision
        published.append(PublishedRef(name=local.repo_id, path=path, local_revision=revision, **on_the_hub))
    return tuple(published)


def misplaced_tags(home: Home, champion: Champion, config: PublishConfig | None = None) -> tuple[str, ...]:
    """A sentence for each place where the tag `champion` is not on what this champion published.

    That is what a crash between tagging and writing champion.json leaves. ModelError where a place cannot be asked.
    """
    return tuple(
        f"{tokenizer.repo_id} and {predictor.repo_id}: the tag {CHAMPION} is at {found}, but the champion of night "
        f"{champion.night} is at {wanted}"
        for tokenizer, predictor, wanted in _places(home, champion, config)
        if (found := champion_tags(tokenizer, predictor)) != wanted
    )


def mirror_champion(home: Home, champion: Champion, config: PublishConfig | None = None) -> None:
    """Put the tag `champion` on what this champion published, on the Hub and in the local hub.

    After a promotion, a rollback and, as a repair, a crash; what is right is left alone. A champion that was never
    published moves nothing. Raises ModelError; each place then has both its tags moved or neither.
    """
    for place in _places(home, champion, config):
        tag_champion(*place)


def _places(
    home: Home, champion: Champion, config: PublishConfig | None
) -> Iterator[tuple[TaggedRepository, TaggedRepository, ChampionTags]]:
    """Both repositories, and the revisions that the champion has there; the Hub, which may refuse, first."""
    if not champion.published:
        return
    tokenizer, predictor = (PublishedRef(**one) for one in champion.published)
    if tokenizer.repo_id:
        token, endpoint = hub_token(config), _endpoint()
        yield (
            Remote(tokenizer.repo_id, token=token, endpoint=endpoint),
            Remote(predictor.repo_id, token=token, endpoint=endpoint),
            ChampionTags(tokenizer=tokenizer.revision, predictor=predictor.revision),
        )
    yield (
        LocalRepository(home.hub, tokenizer.name),
        LocalRepository(home.hub, predictor.name),
        ChampionTags(tokenizer=tokenizer.local_revision, predictor=predictor.local_revision),
    )


def hub_token(config: PublishConfig | None = None) -> str:
    """HF_TOKEN, else what the Secret block holds; empty where there is neither.

    A task calls this itself: the token is nobody's parameter or result, so that no server stores it.
    """
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    try:
        block = cast("Secret[str]", Secret.load((config or PublishConfig()).token_block))
    except ValueError:  # Prefect's word for a block that is not there
        return ""
    return str(block.get()).strip()


def _upload(folder: Path, name: str, config: PublishConfig, night: str) -> Published | None:
    if not config.namespace:
        return None
    return publish_to_hub(
        folder,
        f"{config.namespace}/{name}",
        token=hub_token(config),
        private=config.private,
        tag=_night_tag(night),
        message=f"Night {night}",
        endpoint=_endpoint(),
    )


def _night_tag(night: str) -> str:
    return f"night-{night}"


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
