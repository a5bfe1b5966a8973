"""What requests' exceptions mean, in few words, and what is logged before a retry."""

import logging

import requests
from tenacity import RetryCallState

__all__ = ["cause_of", "first_line", "log_retry"]

logger = logging.getLogger(__name__)


def cause_of(error: requests.RequestException) -> str:
    """The innermost reason in a few words; requests and urllib3 wrap it three deep."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    inner: BaseException = error
    while True:
        deeper = (getattr(inner, "reason", None), inner.__cause__, *reversed(inner.args))
        found = next((part for part in deeper if isinstance(part, BaseException)), None)
        if found is None:
            break
        inner = found
    said = inner.strerror if isinstance(inner, OSError) else None
    return said[0].lower() + said[1:] if said else first_line(inner)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    line = str(error).strip().partition("\n")[0][:300].rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def log_retry(state: RetryCallState) -> None:
    """Tell what failed and when it is tried again (tenacity's `before_sleep`)."""
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed, next in %.1f s: %s", state.attempt_number, state.upcoming_sleep, error)
