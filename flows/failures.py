"""Which failures are a user's to mend, and the sentence that says how."""

from __future__ import annotations

import errno
import os
import re
import textwrap
from collections.abc import Iterator

__all__ = ["explain"]

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another place, for the home with --home",
    errno.EACCES: "this user may not; give the permission or choose another place, for the home with --home",
    errno.EPERM: "this user may not; give the permission or choose another place, for the home with --home",
}
_PREFECT_AWAY = (  # all that its client raises as a bare RuntimeError
    "Failed to reach API",
    "Found incompatible versions",
    "Timed out while attempting to connect to ephemeral",
    "Unable to find an available port",
)
_LOST = (  # what the causes of a failed request say, and what it means; the first that is found counts
    (r"Connection ?refused", "refused the connection"),
    (r"NameResolution|gaierror|Name or service not known", "is no name that this machine can resolve"),
    (r"too many (\d+) error responses", r"answers nothing but HTTP \1"),
    (r"Timeout|timed out", "did not answer in time"),
    (r"RemoteDisconnected|RemoteProtocolError|ConnectionReset", "broke the connection off"),
)
_LONGEST = 200  # characters of somebody else's message


def explain(error: BaseException) -> str | None:
    """One sentence for a failure that has a remedy; None for a defect of ours, which deserves its traceback."""
    from exchange.errors import ExchangeError
    from flows.config import ConfigError
    from kronos_model.errors import ModelError
    from service.errors import Refused
    from storage.errors import StorageError
    from tasks.time_limits import OutOfTime

    known = StorageError | ExchangeError | ModelError | ConfigError | OutOfTime | Refused
    if isinstance(error, known):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _disk(error)
    if type(error).__name__ == "CancelledRun":  # flows.home_access; its class would import Prefect
        return str(error)
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    found = _first_line(error)
    if "mlflow" in packages:
        found = _lost(error, "MLFLOW_TRACKING_URI") or found
        return f"Expected MLflow to answer, found {found}; check MLFLOW_TRACKING_URI, or start its server."
    if "sqlalchemy" in packages:  # MLflow does not wrap every failure to open its store
        return (
            f"Expected MLflow's store to open, found {found}; move mlflow.db of the home away to begin a new one, or "
            "check MLFLOW_TRACKING_URI."
        )
    if "httpx" in packages or (isinstance(error, RuntimeError) and found.startswith(_PREFECT_AWAY)):
        if "httpx" in packages:
            found = _lost(error, "PREFECT_API_URL") or found
        return (
            f"Expected the Prefect API to answer, found {found}; check PREFECT_API_URL, or unset it to run alone "
            "(the embedded one is in prefect/ of the home)."
        )
    return None


def _disk(error: OSError) -> str:
    """A failure of the operating system, by the path it is about."""
    what = f"Expected to use {error.filename}" if error.filename else "Expected the system to do its part"
    if error.errno in _REMEDIES:
        return f"{what}, found that {_REMEDIES[error.errno]}."
    said = error.strerror or "an error"
    return f"{what}, found {said[0].lower()}{said[1:]}; check the path and the disk below it."


def _lost(error: BaseException, variable: str) -> str | None:
    """Which address did not answer and how, where that is what happened."""
    from tasks.database import without_login

    said = " ".join(f"{type(one).__name__} {one}" for one in _causes(error))
    named = re.search(r"https?://[^\s'\"/]+", str(error))
    address = without_login(named[0] if named else os.environ.get(variable, "its address"))
    for pattern, meaning in _LOST:
        if cause := re.search(pattern, said):
            return f"that {address} {cause.expand(meaning)}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """The beginning of what it says, without passwords; cut at a word where it is long."""
    from tasks.database import shown

    lines = shown(str(error)).strip().splitlines()
    return (
        textwrap.shorten(lines[0], _LONGEST, placeholder=" …").rstrip(".") if lines else type(error).__name__
    )
