"""Atomic writes and content digests: a reader sees the old bytes or the new ones, never a mixture."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kronos_model.errors import ModelError

__all__ = [
    "CALIBRATION_FILE",
    "METADATA_FILE",
    "MODEL_FILES",
    "POSTPROCESS_FILE",
    "model_digest",
    "read_json",
    "replace_directory",
    "replace_file",
    "settle_directory",
    "write_json",
]

MODEL_FILES = ("config.json", "model.safetensors")
CALIBRATION_FILE = "calibration.json"
"""Beside a predictor's files in folders from before post-processing: the spread of its paths."""
POSTPROCESS_FILE = "postprocess.json"
"""Beside a predictor's files: what happens to its paths before they are served."""
METADATA_FILE = "kronos_nightly.json"
"""Beside a model's files: what upstream's config.json has no key for."""

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run it again",
    errno.EDQUOT: "the quota is used up: free some space and run it again",
    errno.EACCES: "permission denied: make the folder writable or choose another",
    errno.EPERM: "permission denied: make the folder writable or choose another",
    errno.EROFS: "the file system is read-only: choose another folder",
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise ModelError(f"{path} cannot be written, {_REMEDIES[error.errno]}.") from error


def _sync(path: Path) -> None:
    """Put a file or a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes its place on success."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; on success it takes the place of `path` with all it holds.

    A directory that is not empty cannot be replaced in one step: the old one is moved to `.NAME.previous`
    first. `settle_directory` brings it back after a death between the two moves.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        settle_directory(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for one in (*temporary.rglob("*"), temporary):
                _sync(one)
            if path.exists():
                path.replace(_previous(path))
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            settle_directory(path)
            raise
        _sync(path.parent)
        settle_directory(path)


def settle_directory(path: Path) -> None:
    """Finish what an interrupted `replace_directory(path)` left: restore or drop the previous directory."""
    previous = _previous(path)
    if not previous.exists():
        return
    if path.exists():
        shutil.rmtree(previous)
    else:
        previous.replace(path)


def _previous(path: Path) -> Path:
    return path.parent / f".{path.name}.previous"


def _umask() -> int:
    # mkstemp makes private files; the umask can only be read by setting it
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; NaN and infinities are refused, for no other reader takes them."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file is a ModelError that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: give the folder that holds it.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): write or download it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, found {type(value).__name__}: write it again.")
    return value


def model_digest(folder: Path) -> str:
    """First 16 hex digits of the sha256 over config.json, model.safetensors and any post-processing.

    A model's identity: whatever changes its forecasts changes it.
    """
    digest = hashlib.sha256()
    for path in (Path(folder) / name for name in (*MODEL_FILES, CALIBRATION_FILE, POSTPROCESS_FILE)):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        elif path.name in MODEL_FILES:
            wanted = " and ".join(MODEL_FILES)
            raise ModelError(
                f"{folder} is not a model folder, {path.name} is missing: give one with {wanted}."
            )
    return digest.hexdigest()[:16]
