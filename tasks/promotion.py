"""Who serves: champion.json decides, MLflow's aliases and the Hub's tag mirror it.

Mirrors move first and champion.json last, so until the last moment the old champion serves; a crash in between leaves
mirrors that `mend`, by the next night or `kronos doctor --repair`, moves back to what champion.json says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task

from kronos_model.errors import ModelError
from kronos_model.files import model_digest
from kronos_model.postprocess import PostProcess
from kronos_model.publish_config import PublishConfig
from kronos_model.sampling import SamplingConfig
from kronos_model.windows import FEATURES, WindowDataset
from storage.errors import StorageError
from storage.layout import Home
from storage.registry import (
    Champion,
    champions,
    changing_champion,
    keep_model,
    read_champion,
    read_nights,
    read_recorded,
    settle_history,
    write_champion,
)
from tasks.policies import IDEMPOTENT
from tasks.publish import mirror_champion, misplaced_tags
from tasks.refs import BuiltDataset, PairRef, PublishedRef, RunRef, VerdictRef
from tasks.tracking.registered import (
    RegisteredVersion,
    alias_version,
    move_alias,
    register_model,
    registered_name,
    registered_versions,
)

__all__ = ["Mismatch", "mend", "mismatches", "promote", "promote_run", "register", "roll_back"]

logger = logging.getLogger(__name__)

_SHORTEST = 4  # characters of a run's id that a person has to type


@task(name="register", task_run_name="register", **IDEMPOTENT)
def register(
    home: Home,
    recipe: str,
    model: PairRef,
    run: RunRef,
    *,
    night: str,
    verdict: VerdictRef,
    dataset: BuiltDataset,
    config_digest: str,
    sampling: SamplingConfig,
    seed: int,
) -> str:
    """Register the challenger in MLflow, whatever the verdict; the alias `challenger` names it. Its version.

    Its defaults are the settings that its post-processing was fitted for, or `sampling` where it has none.
    """
    known = PostProcess.load(Path(model.predictor))
    drawn = sampling if known is None else known.sampling(sampling.samples)
    registered = register_model(
        home,
        run,
        recipe,
        digest=f"{model.tokenizer_digest}-{model.predictor_digest}",
        parts={"tokenizer": Path(model.tokenizer), "predictor": Path(model.predictor)},
        sampling={
            "horizon": WindowDataset.open(dataset.path).horizon,
            "samples": drawn.samples,
            "seed": seed,
            "temperature": float(drawn.temperature),
            "top_k": drawn.top_k or 0,
            "top_p": float(drawn.top_p or 1.0),
        },
        example=_example(dataset),
        tags={
            "kronos.recipe": recipe,
            "kronos.night": night,
            "kronos.verdict": verdict.verdict,
            "kronos.dataset_digest": dataset.digest,
            "kronos.config_digest": config_digest,
        },
    )
    move_alias(home, recipe, "challenger", registered.number)
    return registered.number


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
    judged_against: Champion | None,
    serving: Champion | None,
    config: PublishConfig,
) -> Champion:
    """Keep a copy of the challenger and make it the champion, unless somebody else changed who serves meanwhile."""
    challenger = _champion(
        model,
        night=night,
        mlflow_run=mlflow_run,
        since=_now(),
        reasons=verdict.reasons,
        published=tuple(asdict(one) for one in published),
        previous=judged_against,
    )
    champion = _kept(home, recipe, challenger)
    with changing_champion(home, recipe):
        found = read_champion(home, recipe)
        if (found and found.digest) != (serving and serving.digest):
            raise StorageError(
                f"Expected the champion of {recipe} to be the one the challenger was judged against, found that "
                f"{found.by if found else 'somebody'} changed it meanwhile; run the night again to judge anew."
            )
        if found and found.digest == champion.digest:  # a night that was cut off after this
            champion = replace(champion, since=found.since, by=found.by, reasons=found.reasons)
        return _crown(home, recipe, champion, config)


def promote_run(home: Home, recipe: str, run: str, *, reason: str) -> Champion:
    """Make the model of a finished night serve, whatever the gate said of it."""
    with changing_champion(home, recipe):
        known = (*_challengers(home, recipe), *champions(home, recipe))
        chosen = _chosen(known, run, f"finished nights of {recipe}")
        chosen = replace(chosen, previous=read_recorded(home, recipe))
        return _installed(home, recipe, chosen, reason=reason, by="kronos promote")


def roll_back(home: Home, recipe: str, run: str | None, *, reason: str) -> Champion:
    """Make an earlier champion serve again: the one of `run`, or else the one before the present champion."""
    with changing_champion(home, recipe):
        known = champions(home, recipe)
        chosen = _chosen(known, run, f"champions of {recipe}") if run else _before(home, recipe, known)
        return _installed(home, recipe, chosen, reason=reason, by="kronos rollback")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A mirror that does not show who serves, or that cannot be asked."""

    found: str
    asked: bool = True


def mismatches(home: Home, recipe: str, config: PublishConfig | None = None) -> tuple[Mismatch, ...]:
    """Where the mirrors of champion.json say something else; asks MLflow and the Hub, and changes nothing."""
    champion = read_champion(home, recipe)
    if champion is None:
        return ()
    return (*_alias_elsewhere(home, recipe, champion), *_tags_elsewhere(home, champion, config))


def mend(home: Home, recipe: str, config: PublishConfig | None = None) -> tuple[Mismatch, ...]:
    """Move every mirror back to who serves, and note in the history what a crash left out; what was wrong.

    A Hub that does not answer is a warning: the champion serves all the same.
    """
    with changing_champion(home, recipe):
        settle_history(home, recipe)
        champion = read_champion(home, recipe)
        found = mismatches(home, recipe, config)
        for one in found:
            unasked = "The tag of the published champion could not be checked: "
            logger.warning("%s%s.", "" if one.asked else unasked, one.found)
        if champion and any(one.asked for one in found):
            try:
                _mirror(home, recipe, champion, config)
            except ModelError as error:
                logger.warning("The tag of the published champion was not moved: %s", error)
            else:
                logger.warning(
                    "All that shows the champion of %s is back at night %s.", recipe, champion.night
                )
    return found


def _alias_elsewhere(home: Home, recipe: str, champion: Champion) -> tuple[Mismatch, ...]:
    named, meant = alias_version(home, recipe, "champion"), _version_of(home, recipe, champion)
    if named == meant:
        return ()
    shown = f"version {named.number}" if named else "no version"
    wanted = f"version {meant.number}" if meant else "none, the serving model is not registered"
    return (Mismatch(f"MLflow's alias champion of {registered_name(recipe)} is {shown}, should be {wanted}"),)


def _tags_elsewhere(home: Home, champion: Champion, config: PublishConfig | None) -> tuple[Mismatch, ...]:
    if config is not None and config.policy == "never":
        return ()
    try:
        return tuple(map(Mismatch, misplaced_tags(home, champion, config)))
    except ModelError as error:
        return (Mismatch(str(error), asked=False),)


def _crown(home: Home, recipe: str, champion: Champion, config: PublishConfig | None) -> Champion:
    """Mirrors first, champion.json last."""
    _mirror(home, recipe, champion, config)
    write_champion(home, recipe, champion)
    return champion


def _mirror(home: Home, recipe: str, champion: Champion, config: PublishConfig | None) -> None:
    """The alias first: it can be put back where the Hub, both tags or neither, does not move."""
    before, version = alias_version(home, recipe, "champion"), _version_of(home, recipe, champion)
    move_alias(home, recipe, "champion", version.number if version else None)
    try:
        mirror_champion(home, champion, config)
    except ModelError:
        move_alias(home, recipe, "champion", before.number if before else None)
        raise


def _version_of(home: Home, recipe: str, champion: Champion) -> RegisteredVersion | None:
    """The registered version of a champion, the one of its own run if several hold its weights; None if none does."""
    same = [one for one in registered_versions(home, recipe) if one.digest == champion.digest]
    return next((one for one in same if one.run_id == champion.mlflow_run), same[0] if same else None)


def _installed(home: Home, recipe: str, chosen: Champion, *, reason: str, by: str) -> Champion:
    """Check and keep the chosen weights, and crown them."""
    serving = read_recorded(home, recipe)
    if serving and serving.digest == chosen.digest:
        raise StorageError(
            f"Expected another model than the one that serves {recipe}, found that night {chosen.night} serves "
            f"already, since {serving.since}; name another with --to."
        )
    _check_weights(home, chosen)
    champion = replace(_kept(home, recipe, chosen), since=_now(), reasons=(reason,), by=by)
    if serving and serving.published and not champion.published:
        logger.warning("Night %s was never published: the tag champion stays where it was.", champion.night)
    return _crown(home, recipe, champion, None)


def _check_weights(home: Home, chosen: Champion) -> None:
    """The weights of a night must be there, and the ones that it made."""
    digests = {"tokenizer": chosen.tokenizer_digest, "predictor": chosen.predictor_digest}
    for part, folder in _folders(home, chosen).items():
        if not (folder / "model.safetensors").exists():
            raise StorageError(
                f"Expected the weights of night {chosen.night} in {folder}, found none; restore that folder, take "
                "another run, or train it again with `kronos run`."
            )
        if (found := model_digest(folder)) != digests[part]:
            raise StorageError(
                f"Expected the weights {digests[part]} of night {chosen.night} in {folder}, found {found}; restore "
                "that folder or take another run."
            )


def _folders(home: Home, champion: Champion) -> dict[str, Path]:
    return {"tokenizer": home.root / champion.tokenizer, "predictor": home.root / champion.predictor}


def _kept(home: Home, recipe: str, champion: Champion) -> Champion:
    """The same, with a copy of its weights that is kept for good."""
    folders: dict[str, Any] = keep_model(home, recipe, champion.digest, _folders(home, champion))
    return replace(champion, **folders)


def _champion(model: PairRef, **facts: Any) -> Champion:
    """The champion that a model would be."""
    return Champion(
        tokenizer=str(Path(model.tokenizer).absolute()),  # a night may start from a relative folder
        tokenizer_digest=model.tokenizer_digest,
        predictor=str(Path(model.predictor).absolute()),
        predictor_digest=model.predictor_digest,
        **facts,
    )


def _challengers(home: Home, recipe: str) -> list[Champion]:
    """What every finished night trained, as the champion it would be."""
    return [
        _champion(
            PairRef.of(night["challenger"]),
            night=night["night"],
            mlflow_run=night["mlflow_run"],
            since="",
            reasons=(),
            published=tuple(night["published"]),
        )
        for night in read_nights(home, recipe)
    ]


def _chosen(known: Sequence[Champion], run: str, what: str) -> Champion:
    """The one whose night or MLflow run begins with `run`; of the same model, the last one given."""
    called = [one for one in known if one.night.startswith(run) or one.mlflow_run.startswith(run)]
    found = {one.digest: one for one in called if len(run) >= _SHORTEST}
    if len(found) == 1:
        return next(iter(found.values()))
    names = {one.digest: f"{one.night} (MLflow run {one.mlflow_run[:8]})" for one in known}
    listed = ", ".join(names.values()) or "none yet: `kronos run` makes one"
    count = "none that begins" if not found else f"{len(found)} that begin"
    raise StorageError(
        f"Expected the night or MLflow run of one model, of which at least {_SHORTEST} characters, found {count} with "
        f"{run!r}; {what}: {listed}."
    )


def _before(home: Home, recipe: str, known: Sequence[Champion]) -> Champion:
    """Whom the present champion followed, as last recorded."""
    serving = read_recorded(home, recipe)
    if serving is None or serving.previous is None:
        found = f"that {serving.night} was the first" if serving else "that nobody serves"
        raise StorageError(
            f"Expected a champion of {recipe} before the present one, found {found}; `kronos promote --recipe "
            f"{recipe} --to RUN` makes any finished night serve."
        )
    return next((one for one in known if one.digest == serving.previous.digest), serving.previous)


def _example(dataset: BuiltDataset) -> dict[str, Any]:
    """The newest candles of the dataset's test range, as many as the model sees, as a table by column."""
    windows = WindowDataset.open(dataset.path)
    newest = windows.batch("test", [windows.count("test") - 1])
    columns = newest.features[0, : windows.lookback].double().numpy()
    return {
        "series": newest.series * len(columns),
        "open_time": newest.open_time[0, : windows.lookback].astype("datetime64[ms]"),
        **{name: columns[:, at] for at, name in enumerate(FEATURES)},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
