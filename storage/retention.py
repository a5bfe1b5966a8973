"""What a home may forget: old checkpoints, tokens, jobs, datasets, models, forecasts and pictures, by age.

Everything here can be made again or was only looked at. What a champion and the predecessors on its record need stays
at any age, and so does a job that somebody is running.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from kronos_model.settings import Bounds, settings
from storage.atomic import remove_directory
from storage.layout import Home
from storage.registry import Champion, read_champion, read_night

__all__ = ["Expired", "RetentionPolicy", "discard", "expired"]

_DAY_S = 86_400.0


Days = Annotated[float, Bounds(ge=0, unit="days")]


@settings
class RetentionPolicy:
    """How many days each kind of thing is kept after it was last written."""

    checkpoint_days: Days = 1.0
    """Days the checkpoint of a finished job stays; nothing resumes from it any more."""
    token_days: Days = 3.0
    """Days the tokens of a dataset stay; they are encoded again where they are needed."""
    job_days: Days = 30.0
    """Days a finished training job or evaluation stays; a night within them recognises it."""
    abandoned_days: Days = 14.0
    """Days a job that was never finished stays resumable."""
    dataset_days: Days = 14.0
    """Days a dataset stays; it is built again from the lake where it is needed."""
    model_days: Days = 90.0
    """Days a former champion's weights stay; the champion and the predecessors on its record stay for ever."""
    tracked_model_days: Days = 30.0
    """Days MLflow keeps the weights of a night; its parameters, metrics and figures stay for ever."""
    forecast_days: Days = 730.0
    """Days a stored forecast stays."""
    picture_days: Days = 60.0
    """Days the pictures of forecasts and the reports of ingests stay."""
    draft_days: Days = 1.0
    """Days the draft of a killed writer stays, in case it is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expired:
    """One file or folder that nothing needs any more."""

    kind: str
    path: Path
    size: int  # bytes
    age_days: float


def expired(home: Home, policy: RetentionPolicy, *, now: Callable[[], float] = time.time) -> list[Expired]:
    """What `policy` lets go of; of a folder that goes as a whole, not what is inside. Changes nothing.

    Raises StorageError where a champion's record cannot be read: what it needs is not known then.
    """
    needed, moment = _needed(home), now()
    found: dict[Path, Expired] = {}
    for kind, days, path in _candidates(home, policy):
        age_days = (moment - _touched(path)) / _DAY_S
        covered = path in found or any(folder in found for folder in path.parents)
        if age_days >= days and path not in needed and not covered:
            found[path] = Expired(kind=kind, path=path, size=_size(path), age_days=age_days)
    return list(found.values())


def discard(one: Expired) -> None:
    """Delete it."""
    if one.path.is_dir():
        remove_directory(one.path)
    else:
        one.path.unlink(missing_ok=True)


def _candidates(home: Home, policy: RetentionPolicy) -> Iterator[tuple[str, float, Path]]:
    """Kind, days and path; a folder before what is inside it."""
    yield from _jobs(home, policy)
    yield from _datasets(home, policy)
    yield from (("model", policy.model_days, path.parent.parent) for path in _weights(home))
    tracked = sorted(home.mlartifacts.glob("*/models/m-*/artifacts"))
    yield from (("tracked model", policy.tracked_model_days, path) for path in tracked)
    stored = sorted(home.forecasts.glob("*/[!.]*/summary.json"))
    yield from (("forecast", policy.forecast_days, path.parent) for path in stored)
    pictures = sorted([*home.forecasts.glob("figures/*.png"), *home.reports.glob("[!.]*")])
    yield from (("picture", policy.picture_days, path) for path in pictures)
    places = (home.jobs, home.datasets, home.models, home.forecasts, home.hub, home.reports)
    drafts = sorted(path for place in places for path in place.rglob(".*.tmp*"))
    yield from (("draft", policy.draft_days, path) for path in drafts)


def _jobs(home: Home, policy: RetentionPolicy) -> Iterator[tuple[str, float, Path]]:
    for job in sorted(home.jobs.glob("[!.]*/")):
        if _running(job):
            continue
        evaluation = not (job / "job.json").exists()
        finished = evaluation or (job / "result.json").exists()
        kind = "evaluation" if evaluation else "job" if finished else "abandoned job"
        yield kind, policy.job_days if finished else policy.abandoned_days, job
        if finished and (job / "checkpoint").is_dir():
            yield "checkpoint", policy.checkpoint_days, job / "checkpoint"


def _datasets(home: Home, policy: RetentionPolicy) -> Iterator[tuple[str, float, Path]]:
    wanted = {Path(path) for job in home.jobs.glob("[!.]*/") for path in _dataset_of(job)}
    for dataset in sorted(home.datasets.glob("[!.]*/")):
        if dataset in wanted:
            continue
        yield "dataset", policy.dataset_days, dataset
        if (dataset / "tokens").is_dir():
            yield "tokens", policy.token_days, dataset / "tokens"


def _dataset_of(job: Path) -> Iterator[Path]:
    """The dataset that a job has yet to be run on."""
    if (job / "job.json").exists() and not (job / "result.json").exists():
        told = job / json.loads((job / "job.json").read_text())["dataset"]["path"]
        yield told.resolve()
        yield job.parents[1] / "datasets" / told.name  # the home may have been moved since


def _weights(home: Home) -> list[Path]:
    """One file of every model that was ever promoted; `scratch` holds what nights start from."""
    found = sorted(home.models.glob("*/[!.]*/predictor/model.safetensors"))
    return [path for path in found if path.relative_to(home.models).parts[0] != "scratch"]


def _needed(home: Home) -> set[Path]:
    """Models, datasets and jobs of every champion and of the predecessors on its record."""
    needed: set[Path] = set()
    tracked = _tracked(home)
    for record in home.models.glob("*/champion.json"):
        recipe = record.parent.name
        champion: Champion | None = read_champion(home, recipe)
        while champion is not None:
            needed |= {(home.root / champion.predictor).parent, (home.root / champion.tokenizer).parent}
            needed |= tracked.get(champion.mlflow_run, set())
            night = read_night(home, recipe, champion.night) or {}
            if night:  # by name: the home may have been moved since
                needed.add(home.datasets / Path(night["dataset"]["path"]).name)
                needed |= {home.jobs / Path(one["job"]).name for one in night["stages"]}
            champion = champion.previous
    return needed


def _tracked(home: Home) -> dict[str, set[Path]]:
    """The folders of the models that MLflow keeps, by the run that made them, as the MLmodel in each says."""
    found: dict[str, set[Path]] = {}
    for description in home.mlartifacts.glob("*/models/m-*/artifacts/MLmodel"):
        for line in description.read_text(encoding="utf-8").splitlines():
            if line.startswith("run_id: "):
                found.setdefault(line.removeprefix("run_id: ").strip(), set()).add(description.parent)
    return found


def _running(job: Path) -> bool:
    """Whether a process holds the job's lock."""
    if not (job / ".lock").exists():
        return False
    with (job / ".lock").open("rb") as file:  # who only looks may have nothing to write
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _touched(path: Path) -> float:
    """When something was last written directly in it."""
    inside = [one.lstat().st_mtime for one in path.iterdir()] if path.is_dir() else []
    return max([path.lstat().st_mtime, *inside])


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.lstat().st_size for one in files if one.is_file() and not one.is_symlink())
