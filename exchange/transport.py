"""What clients over requests share: connections, what its exceptions mean in few words, what a retry logs."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import requests
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState

from storage.schema import Market, SeriesKey

__all__ = ["PooledClient", "cause_of", "first_line", "log_retry", "reason_of"]

logger = logging.getLogger(__name__)


class PooledClient:
    """One market over so many threads, and a session with a connection for each; leaving its block drops them."""

    def __init__(self, market: Market, threads: int, name: str) -> None:
        self.market: Market = market
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "kronos-nightly"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._session.close()

    def _check_market(self, key: SeriesKey) -> None:
        if key.market != self.market:
            name = type(self).__name__
            raise ValueError(
                f"Expected a series of market {self.market}, found {key}; "
                f"make {'an' if name[0] in 'AEIOU' else 'a'} {name}({key.market!r}) for it."
            )


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
    return reason_of(inner) or first_line(inner)


def reason_of(error: BaseException) -> str:
    """What the system says of an error, such as `connection refused`; empty if it says nothing."""
    said = (error.strerror if isinstance(error, OSError) else None) or ""
    return said[:1].lower() + said[1:]


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    line = str(error).strip().partition("\n")[0][:300].rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def log_retry(state: RetryCallState) -> None:
    """Tell what failed and when it is tried again (tenacity's `before_sleep`)."""
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d failed, next in %.1f s: %s", state.attempt_number, state.upcoming_sleep, error)
