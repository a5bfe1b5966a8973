"""A digest of the code that determines results: what an update changes is not taken for something done before."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["code_digest", "sources"]

_MODULES = (  # outside the model's own package
    "storage.past",
    "storage.dataset",
    "storage.splits",
    "storage.interval",
    "storage.clipped_values",
    "tasks.dataset",
    "tasks.train",
    "tasks.evaluate",
    "tasks.forecast",
    "flows.finetune",
    "flows.judge",
    "flows.nightly",
)


@cache
def code_digest() -> str:
    """Sixteen hex digits over the source of the model, its training and its judgement.

    Nights, jobs and evaluations are named by it among others. A comment counts as well: to train once more is cheaper
    than to believe an old result.
    """
    digest = hashlib.sha256()
    for name, path in sources():
        digest.update(f"{name}\n".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def sources() -> list[tuple[str, Path]]:
    """Every module that counts, by name and file; nothing that is installed from elsewhere."""
    root = _file("kronos_model").parent
    model = [(str(path.relative_to(root.parent)), path) for path in sorted(root.rglob("*.py"))]
    return [*model, *((name, _file(name)) for name in _MODULES)]


def _file(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, f"{name} is a module of this program"
    return Path(str(spec.origin))
