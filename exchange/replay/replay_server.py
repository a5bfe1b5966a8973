"""A loopback Binance: serves candles over HTTP as the spot and USD-M futures REST APIs do.

It listens on 127.0.0.1 alone. One thread per connection, HTTP/1.1 with keep-alive, one write per answer.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import polars as pl

from exchange.archive import ArchiveConfig
from exchange.errors import ExchangeError
from exchange.replay.answers import Answer, commit, error_answer, refusal_answer
from exchange.replay.archive_style import ArchiveStyle
from exchange.replay.bucket_listing import ArchiveBucket, FolderBucket, bucket_answer, is_for_bucket
from exchange.replay.bulk_archive import ReplayArchive
from exchange.replay.clock import ReplayClock
from exchange.replay.endpoints import RequestError, answer_for, parse_query, route
from exchange.replay.faults import Fault, FaultPlan
from exchange.replay.listed_symbols import ReplayMarket
from exchange.replay.loopback import LoopbackServer
from exchange.replay.penalties import WEIGHT_LIMITS, WeightLimiter, request_weight
from exchange.replay.websocket import StreamFaults, StreamServer
from exchange.rest import ExchangeConfig
from exchange.stream import StreamConfig
from storage.schema import CANDLE_SCHEMA, Market, SeriesKey

__all__ = ["ReplayExchange", "ReplayRequest"]

LOG_LENGTH = 100_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """One request as the log remembers it."""

    method: str
    path: str
    params: Mapping[str, str]
    status: int
    weight: int
    rows: int
    fault: str | None


class ReplayExchange:
    """Binance's public market data, replayed from candles; a context manager that serves in a daemon thread.

    `candles` come from `storage.candle_files.read_folder` or `synthetic_market`; nothing beyond `clock` is shown. A
    longer interval than the stored one is aggregated from it. `weight_limits` replaces the weight per minute
    of a market, `archive` says how the bulk archive is written. See exchange.replay.endpoints for what is answered
    and exchange.replay.series for what is filled in where the data has nulls.
    """

    def __init__(
        self,
        candles: Mapping[SeriesKey, pl.DataFrame],
        *,
        clock: ReplayClock,
        faults: Sequence[Fault] = (),
        port: int = 0,
        weight_limits: Mapping[Market, int] | None = None,
        archive: ArchiveStyle | None = None,
    ) -> None:
        _check(candles)
        limits = {**WEIGHT_LIMITS, **(weight_limits or {})}
        self.clock = clock
        self._markets = {
            name: ReplayMarket(name, candles, weight_limit=limit) for name, limit in limits.items()
        }
        self._limiters = {name: WeightLimiter(limit, clock=clock) for name, limit in limits.items()}
        self.archive = ReplayArchive(self._markets, clock=clock, style=archive or ArchiveStyle())
        """The archive built from the candles; its style, faults included, may be replaced."""
        self.faults = faults
        self._log: deque[ReplayRequest] = deque(maxlen=LOG_LENGTH)
        streams = StreamServer(
            find=lambda name, symbol, interval: self._markets[name].series(symbol, interval),
            clock=clock,
            faults=lambda: self._stream_faults,
            note=self._note,
        )
        self._server = LoopbackServer(self._respond, port=port, stream=streams.serve)
        self._thread: threading.Thread | None = None
        self._page_before: Answer | None = None

    def __enter__(self) -> Self:
        self._thread = self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of both markets, such as http://127.0.0.1:41234."""
        return self._server.url

    @property
    def config(self) -> ExchangeConfig:
        return ExchangeConfig(spot_url=self.url, um_url=self.url, spot_fallback_url="")

    @property
    def archive_config(self) -> ArchiveConfig:
        return ArchiveConfig(archive_url=self.url, listing_url=self.url)

    @property
    def stream_config(self) -> StreamConfig:
        address = self.url.replace("http://", "ws://")
        return StreamConfig(spot_stream_url=address, um_stream_url=f"{address}/market")

    @property
    def requests(self) -> list[ReplayRequest]:
        """The latest requests, oldest first, at most 100,000; a stream's handshake has status 101."""
        return list(self._log)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force. Assigning others counts requests from 1 again."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._plan = FaultPlan([fault for fault in faults if not fault.kind.startswith("ws-")])
        self._stream_faults = StreamFaults(faults)

    def forget_requests(self) -> None:
        self._log.clear()

    def serve_forever(self) -> None:
        """Serve in this thread until `close` or an interrupt; the socket is closed after it."""
        try:
            self._server.serve_forever()
        finally:
            self._server.stop()

    def close(self) -> None:
        """Stop serving, drop open connections and free the port."""
        self._server.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _respond(self, target: str) -> Answer:
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        if is_for_bucket(parts.path, params):
            return self._archived(parts.path, params)
        if (routed := route(parts.path)) is None:
            return self._note(parts.path, {}, Answer(404, b""))
        market, endpoint = routed
        weight, limiter = request_weight(market, endpoint, params), self._limiters[market]
        used, refusal = limiter.spend(weight)
        answer = refusal_answer(refusal) if refusal else self._answer(market, endpoint, parts.query)
        fault = self._plan.strike(parts.path)
        if fault is not None and fault.kind == "stale":
            answer = self._page_before or answer
        elif fault is not None:
            answer = commit(fault, answer, limit=limiter.limit, now_ms=self.clock.now_ms)
        if answer.page is not None:
            self._page_before = answer
        counted = (("X-MBX-USED-WEIGHT", str(used)), ("X-MBX-USED-WEIGHT-1M", str(used)))
        answer = replace(answer, headers=(*answer.headers, *counted))
        return self._note(parts.path, params, answer, fault=fault, weight=weight)

    def _archived(self, path: str, params: Mapping[str, str]) -> Answer:
        style = self.archive.style
        bucket: ArchiveBucket = self.archive if style.folder is None else FolderBucket(style.folder)
        answer = bucket_answer(bucket, path, params, page_size=style.page_size)
        if fault := self._plan.strike(path):
            answer = commit(fault, answer, limit=0, now_ms=self.clock.now_ms)
        return self._note(path, params, answer, fault=fault)

    def _answer(self, market: Market, endpoint: str, query: str) -> Answer:
        try:
            return answer_for(self._markets[market], endpoint, parse_query(query), self.clock)
        except RequestError as error:
            return error_answer(400, error.code, str(error))

    def _note(
        self,
        path: str,
        params: Mapping[str, str],
        answer: Answer,
        *,
        fault: Fault | None = None,
        weight: int = 0,
    ) -> Answer:
        """Write a request into the log, and give back its answer."""
        rows, kind = answer.page.count if answer.page else 0, fault.kind if fault else None
        self._log.append(ReplayRequest("GET", path, params, answer.status, weight, rows, kind))
        logger.debug("%s %s -> %d, %d rows", path, params, answer.status, rows)
        return answer


def _check(candles: Mapping[SeriesKey, pl.DataFrame]) -> None:
    if not candles:
        raise ExchangeError("Expected at least one series to replay, found none; give a folder with candles.")
    for key, frame in candles.items():
        if dict(frame.schema) != CANDLE_SCHEMA:
            raise ExchangeError(
                f"Expected the columns and types of storage.schema.CANDLE_SCHEMA in {key}, "
                f"found {dict(frame.schema)}; read it with storage.candle_files.read_candles."
            )
        if frame.is_empty():
            raise ExchangeError(f"Expected candles in {key}, found none; leave the series out.")
        if nulls := frame["quote_volume"].null_count():
            logger.warning("%s: %d candles without quote_volume are served with an estimate", key, nulls)
