"""Binance's bulk archive: which parts there are, and their candles, never used before their checksum fits.

Files there appear late, vanish, break and are replaced without notice. A part that fails is tried again a few
times, since a replacement may be under way, and then becomes an error of its own; the other parts go on.
"""

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import polars as pl
import requests
from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event, wait_exponential_jitter

from exchange.archive_csv import candles_of, day_counts, unzip
from exchange.archive_parts import (
    DAY_MS,
    ArchivePart,
    ListingPage,
    PartKind,
    folder_of,
    kinds_of,
    parse_listing,
    parts_among,
    periods,
    stem_of,
)
from exchange.config import ArchiveConfig
from exchange.errors import ArchiveError, BadRequest, ExchangeError, Malformed, NotYetPublished, Unreachable
from exchange.shared_budget import SharedBudget
from exchange.transport import PooledClient, cause_of, log_retry
from storage.ledger import Source
from storage.schema import Market, SeriesKey

__all__ = ["ArchiveClient", "ArchiveConfig", "ArchivePart", "FetchedPart"]

DAMAGED_ATTEMPTS = 3  # a replacement takes seconds; what stays damaged stays so for days (public-data #469)
CHUNK_BYTES = 1 << 18
CANDLES_UNDER_WAY = 600_000  # from the download until they are stored: 60 MB, of all series together
PARTS_PER_THREAD = 2  # one to download, one that waits to be stored
PARSED_AT_ONCE = 2  # a month of 1m takes 30 MB meanwhile, and a core or more
PASSING = (403, 408, 429)  # besides 5xx: the content network's refusals under load

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedPart:
    """The candles of a part, and what proves them."""

    part: ArchivePart
    candles: pl.DataFrame
    """Validated, closed, of the part's period alone."""
    sha256: str
    """Of the zip, as its CHECKSUM states it."""
    day_counts: Mapping[str, int]
    """Candles per UTC day that has any."""

    @property
    def source(self) -> Source:
        """What the ledger says of these candles."""
        return Source("archive", self.part.name, sha256=self.sha256)

    @property
    def short_days(self) -> tuple[str, ...]:
        """Days of the period with fewer candles than fit into a day; days without any are among them."""
        length = self.part.key.interval.milliseconds
        if length is None or length > DAY_MS:
            return ()
        days = periods("daily", self.part.first_ms, self.part.last_ms + 1)
        return tuple(day for day in days if self.day_counts.get(day, 0) < DAY_MS // length)


class ArchiveClient(PooledClient):
    """One market of the archive. Series that share one download `threads` files at once in all, and hold a
    bounded number of candles in memory, however many they are and however long."""

    def __init__(
        self,
        market: Market,
        config: ArchiveConfig | None = None,
        *,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.config = config or ArchiveConfig()
        super().__init__(market, self.config.threads, f"{market}-archive")
        self.requests = 0
        self._sleep = sleep
        self._lock = threading.Lock()
        self._connections = threading.BoundedSemaphore(self.config.threads)
        self._parsing = threading.BoundedSemaphore(PARSED_AT_ONCE)
        self._room = SharedBudget(CANDLES_UNDER_WAY)

    def list_parts(
        self, key: SeriesKey, *, kinds: Iterable[PartKind] | None = None, start_ms: int | None = None
    ) -> list[ArchivePart]:
        """The parts that the archive has of a series, by period, a month before its days.

        `start_ms` leaves out the periods before the one that holds it, and the requests that they would cost.
        """
        self._check_market(key)
        parts: list[ArchivePart] = []
        for kind in kinds_of(key.interval):
            if kinds is None or kind in kinds:
                parts += self._list(key, kind, start_ms)
        return sorted(parts, key=lambda part: part.order)

    def part(self, key: SeriesKey, kind: PartKind, period: str) -> ArchivePart:
        """The part of a period such as `2024-06` or `2024-06-01`, without asking whether it exists."""
        self._check_market(key)
        return ArchivePart.of(key, kind, period, archive_url=self.config.archive_url)

    def checksum(self, part: ArchivePart) -> str:
        """The sha256 that the archive states for a part now, without downloading the part."""
        return self._patiently(partial(self._stated, part))

    def fetch(self, part: ArchivePart) -> FetchedPart:
        """Download a part, verify it and parse it."""
        return self._patiently(partial(self._download, part))

    def fetch_many(
        self,
        parts: Iterable[ArchivePart],
        *,
        on_part: Callable[[ArchivePart, FetchedPart | ExchangeError], object],
    ) -> None:
        """Fetch parts side by side and hand each to `on_part`, by period and in this thread.

        A part that fails is handed over as its error. Parts count as in memory until `on_part` returns. An
        exception out of `on_part` ends the downloads.
        """
        waiting = deque(sorted(parts, key=lambda part: part.order))
        under_way: deque[tuple[ArchivePart, Future[FetchedPart | ExchangeError]]] = deque()
        stop = threading.Event()
        try:
            while waiting or under_way:
                while waiting and self._room.take(self._share(waiting[0]), wait=not under_way):
                    part = waiting.popleft()
                    under_way.append((part, self._pool.submit(self._outcome, part, stop)))
                on_part(under_way[0][0], under_way[0][1].result())
                self._room.give(self._share(under_way.popleft()[0]))
        finally:
            stop.set()
            wait([future for _, future in under_way if not future.cancel()])
            for part, _ in under_way:
                self._room.give(self._share(part))

    def _share(self, part: ArchivePart) -> int:
        """The room that a part takes; small ones take some too, so that they stay few."""
        candles = part.key.interval.count(part.first_ms, part.last_ms)
        return max(candles, self._room.most // (PARTS_PER_THREAD * self.config.threads))

    def _outcome(self, part: ArchivePart, stop: threading.Event) -> FetchedPart | ExchangeError:
        try:
            return self._patiently(partial(self._download, part), stop)
        except ExchangeError as error:
            return error

    def _download(self, part: ArchivePart, stop: threading.Event) -> FetchedPart:
        content = self._get(part.url, stop=stop)
        stated, found = self._stated(part, stop), hashlib.sha256(content).hexdigest()
        if found != stated:
            raise ArchiveError(
                f"{part.name}: expected the sha256 {stated} of its CHECKSUM, found {found}; "
                "it is not used. The exchange may be replacing the file, try again later."
            )
        with self._parsing:
            candles = candles_of(unzip(content, part), part)
        return FetchedPart(part=part, candles=candles, sha256=found, day_counts=day_counts(candles))

    def _stated(self, part: ArchivePart, stop: threading.Event) -> str:
        try:
            text = self._get(f"{part.url}.CHECKSUM", stop=stop).decode("utf-8", errors="replace")
        except NotYetPublished as error:
            raise ArchiveError(
                f"{part.name}: expected a CHECKSUM beside it, found none; it is not used without one. "
                "Its candles have to come from the REST API, or from here once it has one."
            ) from error
        stated = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S+)\s*", text)
        if stated is None or stated[2] != part.name:
            raise ArchiveError(
                f"{part.name}: expected its sha256 and name in its CHECKSUM, found {text[:100]!r}; "
                "it is not used. Try again later."
            )
        return stated[1].lower()

    def _list(self, key: SeriesKey, kind: PartKind, start_ms: int | None) -> list[ArchivePart]:
        params = {"delimiter": "/", "prefix": folder_of(key, kind)}
        marker = None if start_ms is None else stem_of(key, kind, start_ms)
        parts: list[ArchivePart] = []
        while True:
            asked = params if marker is None else {**params, "marker": marker}
            etags, marker = self._patiently(partial(self._page, asked))
            parts += parts_among(etags, key, kind, archive_url=self.config.archive_url)
            if marker is None:
                return parts

    def _page(self, params: Mapping[str, str], stop: threading.Event) -> ListingPage:
        url = self.config.listing_url
        try:
            etags, marker = parse_listing(self._get(url, params, stop=stop))
            if marker is not None and marker <= params.get("marker", ""):
                raise ValueError("a listing that does not go on")
        except ValueError as error:
            raise Malformed(
                f"Expected a listing of the archive from {url}, found {error}; "
                "check archive.listing_url, or try again later."
            ) from error
        except NotYetPublished as error:
            raise BadRequest(
                f"Expected a listing of the archive from {url}, found HTTP 404; check archive.listing_url."
            ) from error
        return etags, marker

    def _get(self, url: str, params: Mapping[str, str] | None = None, *, stop: threading.Event) -> bytes:
        try:
            with (
                self._connections,
                self._session.get(url, params=params, timeout=self.config.timeout_s, stream=True) as response,
            ):
                chunks: list[bytes] = []
                for chunk in response.iter_content(CHUNK_BYTES):
                    if stop.is_set():
                        raise _Stopped
                    chunks.append(chunk)
        except requests.RequestException as error:
            raise Unreachable(
                f"Expected an answer from {url}, found {cause_of(error)}; "
                "check the network and the archive's URLs."
            ) from error
        body = b"".join(chunks)
        with self._lock:
            self.requests += 1
        if response.status_code != 200:
            raise _refusal(response.status_code, url)
        return body

    def _patiently(self, ask: Callable[[threading.Event], T], stop: threading.Event | None = None) -> T:
        stop = stop or threading.Event()
        retrying = Retrying(
            sleep=self._sleep or sleep_using_event(stop),
            stop=self._is_enough,
            wait=wait_exponential_jitter(initial=0.5, max=10.0),
            retry=retry_if_exception(_worth_another_try),
            before_sleep=log_retry,
            reraise=True,
        )
        return retrying(ask, stop)

    def _is_enough(self, state: RetryCallState) -> bool:
        damaged = state.outcome and isinstance(state.outcome.exception(), ArchiveError)
        most = DAMAGED_ATTEMPTS if damaged else self.config.attempts
        return state.attempt_number >= min(most, self.config.attempts)


class _Stopped(Exception):  # noqa: N818  # nobody sees it: the pool that ran the download is gone
    pass


def _refusal(status: int, url: str) -> ExchangeError:
    if status == 404:
        return NotYetPublished(
            f"Expected {url.rpartition('/')[2]} in the archive, found that it is not there; days appear on "
            "the next day, months in the first days of the next one, and the REST API has the candles before."
        )
    found = f"Expected an answer from {url}, found HTTP {status}"
    if status in PASSING or status >= 500:
        return Unreachable(f"{found}; the archive has trouble, try again later.")
    return BadRequest(f"{found}; check the archive's URLs.")


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, ArchiveError | Malformed | Unreachable) and not isinstance(
        error, NotYetPublished
    )
