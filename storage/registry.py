"""Which model serves, which served before, and which nights are done.

    models/<recipe>/champion.json    who serves; replaced atomically and last: until then the previous one does
    models/<recipe>/history.jsonl    every change of it, oldest first: when, from whom, to whom, why, by which command
    models/<recipe>/<digests>/       the weights of every champion there was
    models/<recipe>/nights/          the summary of every finished night

Paths inside are relative to the home, so a home can be moved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from storage.atomic import atomic_directory, atomic_path, write_json
from storage.errors import StorageError
from storage.layout import Home
from storage.locks import ProcessLock
from storage.object_home import confirm_turn

__all__ = [
    "Champion",
    "Change",
    "champions",
    "changing_champion",
    "keep_model",
    "read_champion",
    "read_history",
    "read_night",
    "read_nights",
    "read_recorded",
    "settle_history",
    "write_champion",
    "write_night",
]

_WEIGHTS = "model.safetensors"
_PATIENCE_S = 30.0
_PATHS = {  # what in a night's summary is a path, by section: one mapping or a list of them
    "": ("report",),
    "dataset": ("path",),
    "stages": ("job", "best"),
    "challenger": ("tokenizer", "predictor"),
    "published": ("path",),
    "forecasts": ("path", "figure"),
}


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
    previous: Champion | None = None  # whom it was judged against, one generation
    by: str = "kronos run"  # the command that made it serve

    @property
    def digest(self) -> str:
        """Both digests, as the folder of a kept model is named."""
        return f"{self.tokenizer_digest}-{self.predictor_digest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One line of the history: `champion` began to serve at its `since`, for its `reasons`, `by` a command."""

    champion: Champion
    replaced: str | None  # digest of who served before; None at the first promotion


def read_champion(home: Home, recipe: str) -> Champion | None:
    """The champion of a recipe; None before the first promotion.

    Raises StorageError when the file is not readable or names a model that is gone.
    """
    champion = read_recorded(home, recipe)
    for part in (champion.tokenizer, champion.predictor) if champion else ():
        if not (home.root / part / _WEIGHTS).exists():
            raise StorageError(
                f"Expected the champion's weights in {home.root / part}, found none; restore that folder, "
                f"`kronos rollback --recipe {recipe}` to an earlier champion, or delete "
                f"{_folder(home, recipe) / 'champion.json'} to start without one."
            )
    return champion


def write_champion(home: Home, recipe: str, champion: Champion) -> None:
    """Make `champion` serve, atomically, and then note it in the history."""
    settle_history(home, recipe)
    write_json(_folder(home, recipe) / "champion.json", _fields(home, champion))
    settle_history(home, recipe)


@contextmanager
def changing_champion(home: Home, recipe: str) -> Iterator[None]:
    """Be the only one who changes a recipe's champion; nobody does for longer than a moment."""
    lock = ProcessLock(_folder(home, recipe) / ".champion.lock", guarded=f"the champion of {recipe}")
    with home.writing("changing the champion"), lock.hold("changing the champion", wait_s=_PATIENCE_S):
        confirm_turn(home.root)  # before anything moves, mirrors included
        yield


def read_history(home: Home, recipe: str) -> tuple[Change, ...]:
    """Every change of a recipe's champion, oldest first."""
    path = _folder(home, recipe) / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    changes = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            changes.append(Change(champion=_champion(home, fields["champion"]), replaced=fields["replaced"]))
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"Expected a champion in line {number} of {path}, found something else ({error}); restore the file "
                "from a backup, or delete that line and forget that champion."
            ) from error
    return tuple(changes)


def settle_history(home: Home, recipe: str) -> None:
    """Note the present champion, where a crash after champion.json or an older release did not."""
    settled = _settled(home, recipe)
    if settled != read_history(home, recipe):
        with atomic_path(_folder(home, recipe) / "history.jsonl") as draft:
            draft.write_text("".join(_line(home, one) for one in settled), encoding="utf-8")


def champions(home: Home, recipe: str) -> tuple[Champion, ...]:
    """Everyone who ever served a recipe, each once as last recorded, in the order of their first day."""
    return tuple({one.champion.digest: one.champion for one in _settled(home, recipe)}.values())


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
    return _summary(path, home)


def read_nights(home: Home, recipe: str) -> tuple[dict[str, Any], ...]:
    """The summaries of all finished nights of a recipe."""
    paths = sorted(
        (_folder(home, recipe) / "nights").glob("*.json"), key=lambda path: path.stat().st_mtime_ns
    )
    return tuple(_summary(path, home) for path in paths)


def write_night(home: Home, recipe: str, identity: str, summary: dict[str, Any]) -> None:
    """Record a finished night; its existence means that every step of it is done."""
    write_json(_folder(home, recipe) / "nights" / f"{identity}.json", {**summary, "home": str(home.root)})


def read_recorded(home: Home, recipe: str) -> Champion | None:
    """What champion.json says, whether or not the weights are there; None before the first promotion."""
    path = _folder(home, recipe) / "champion.json"
    if not path.exists():
        return None
    try:
        return _champion(home, json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"Expected a champion record in {path}, found something else ({error}); restore it from a backup or delete "
            f"it, and the next promoted night writes it anew."
        ) from error


def _settled(home: Home, recipe: str) -> tuple[Change, ...]:
    """The history with the present champion, whether or not it is noted there yet."""
    champion, changes = read_recorded(home, recipe), list(read_history(home, recipe))
    if champion is None or (changes and _moment(changes[-1].champion) == _moment(champion)):
        return tuple(changes)
    before = [champion.previous] if champion.previous and not changes else []
    for one in (*before, champion):
        changes.append(Change(champion=one, replaced=changes[-1].champion.digest if changes else None))
    return tuple(changes)


def _summary(path: Path, home: Home) -> dict[str, Any]:
    """A night's summary with its paths as they are here: a home may be moved, or be another machine's copy."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if written := summary.pop("home", None):
        for section, names in _PATHS.items():
            for entry in _entries(summary.get(section) if section else summary):
                _move(entry, names, Path(written), home.root)
    return summary


def _entries(section: Any) -> list[dict[str, Any]]:
    """Those of a section; none where the night has no such section."""
    return section if isinstance(section, list) else [section] if section else []


def _move(entry: dict[str, Any], names: Sequence[str], written: Path, root: Path) -> None:
    """Name what lay below the home `written` by where it lies below `root`; what lies elsewhere stays."""
    for name in names:
        value = entry.get(name)
        if value and Path(value).is_relative_to(written):
            entry[name] = str(root / Path(value).relative_to(written))


def _line(home: Home, change: Change) -> str:
    fields = {"replaced": change.replaced, "champion": _fields(home, change.champion)}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def _moment(champion: Champion) -> tuple[str, str, str]:
    return (champion.digest, champion.since, champion.by)


def _fields(home: Home, champion: Champion) -> dict[str, Any]:
    """One generation of predecessors, no more; paths in the home relative to it."""
    if champion.previous is not None:
        champion = replace(champion, previous=replace(champion.previous, previous=None))
    fields = asdict(champion)
    for one in (*fields["published"], *((fields["previous"] or {}).get("published", ()))):
        if Path(one["path"]).is_relative_to(home.root):
            one["path"] = str(Path(one["path"]).relative_to(home.root))
    return fields


def _champion(home: Home, fields: dict[str, Any]) -> Champion:
    """Raises KeyError, TypeError or ValueError when the fields are not a champion's."""
    previous, reasons = fields.pop("previous"), tuple(fields.pop("reasons"))
    # An absolute path is from before they were relative, or elsewhere.
    published = tuple({**one, "path": str(home.root / one["path"])} for one in fields.pop("published"))
    before = _champion(home, previous) if previous else None
    return Champion(**fields, reasons=reasons, published=published, previous=before)


def _folder(home: Home, recipe: str) -> Path:
    return home.models / recipe
