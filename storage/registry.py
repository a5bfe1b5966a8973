"""Which model serves, and which nights are done: `models/<recipe>/champion.json` and `models/<recipe>/nights/`.

Paths inside are relative to the home, so a home can be moved. champion.json is replaced atomically and last: until
then the previous champion serves.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from storage.atomic import atomic_directory, write_json
from storage.errors import StorageError
from storage.layout import Home

__all__ = ["Champion", "keep_model", "read_champion", "read_night", "write_champion", "write_night"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """The model that serves a recipe."""

    tokenizer: str  # folder relative to the home
    tokenizer_digest: str
    predictor: str
    predictor_digest: str
    night: str  # identity of the night that made it
    mlflow_run: str
    since: str  # ISO 8601, UTC
    reasons: tuple[str, ...]
    published: tuple[dict[str, Any], ...] = ()
    previous: Champion | None = None  # whom it replaced, one generation


def read_champion(home: Home, recipe: str) -> Champion | None:
    """The champion of a recipe; None before the first promotion.

    Raises StorageError when the file is not readable or names a model that is gone.
    """
    path = _folder(home, recipe) / "champion.json"
    if not path.exists():
        return None
    try:
        champion = _champion(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"Expected a champion record in {path}, found something else ({error}); restore it from a backup or delete "
            f"it, and the next promoted night writes it anew."
        ) from error
    for part in (champion.tokenizer, champion.predictor):
        if not (home.root / part / "model.safetensors").exists():
            raise StorageError(
                f"Expected the champion's weights in {home.root / part}, found none; restore that folder, or delete "
                f"{path} to start without a champion."
            )
    return champion


def write_champion(home: Home, recipe: str, champion: Champion) -> None:
    """Make `champion` serve, atomically; it remembers whom it replaced, one generation back."""
    if champion.previous is not None:
        champion = replace(champion, previous=replace(champion.previous, previous=None))
    write_json(_folder(home, recipe) / "champion.json", asdict(champion))


def keep_model(home: Home, recipe: str, digest: str, parts: dict[str, Path]) -> dict[str, str]:
    """Copy the parts of a model into `models/<recipe>/<digest>/`; returns their folders relative to the home."""
    target = _folder(home, recipe) / digest
    if not target.exists():
        with atomic_directory(target) as draft:
            for name, source in parts.items():
                shutil.copytree(source, draft / name)
    return {name: str((target / name).relative_to(home.root)) for name in parts}


def read_night(home: Home, recipe: str, identity: str) -> dict[str, Any] | None:
    """The summary of a finished night; None when that night has not finished."""
    path = _folder(home, recipe) / "nights" / f"{identity}.json"
    if not path.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def write_night(home: Home, recipe: str, identity: str, summary: dict[str, Any]) -> None:
    """Record a finished night; its existence means that every step of it is done."""
    write_json(_folder(home, recipe) / "nights" / f"{identity}.json", summary)


def _champion(fields: dict[str, Any]) -> Champion:
    """Raises KeyError, TypeError or ValueError when the fields are not a champion's."""
    previous = fields.pop("previous")
    reasons, published = tuple(fields.pop("reasons")), tuple(fields.pop("published"))
    return Champion(
        **fields, reasons=reasons, published=published, previous=_champion(previous) if previous else None
    )


def _folder(home: Home, recipe: str) -> Path:
    return home.models / recipe
