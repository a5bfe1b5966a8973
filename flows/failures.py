"""Which failures are a user's to mend, and the sentence that says how."""

from __future__ import annotations

import errno

__all__ = ["explain"]

_DISK = {
    errno.ENOSPC: "expected room to write, found the disk full; free some space and run the same command again",
    errno.EDQUOT: "expected room to write, found the quota used up; free some space and run the same command again",
    errno.EROFS: "expected a writable place, found a read-only file system; choose another with --home",
    errno.EACCES: "expected permission to write there, found none; choose another place with --home",
}


def explain(error: BaseException) -> str | None:
    """One sentence for a failure that has a remedy; None for a defect of ours, which deserves its traceback."""
    from exchange.errors import ExchangeError
    from flows.config import ConfigError
    from kronos_model.errors import ModelError
    from storage.errors import StorageError

    if isinstance(error, StorageError | ExchangeError | ModelError | ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'The home'}: {_DISK[error.errno]}."
    if type(error).__module__.startswith("mlflow."):
        return f"MLflow did not answer as expected ({_first_line(error)}); check MLFLOW_TRACKING_URI or start its server."
    if type(error).__module__.startswith("httpx") and "connect" in str(error).lower():
        return f"The Prefect API did not answer ({_first_line(error)}); check PREFECT_API_URL or unset it to run alone."
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
