"""A loopback Binance: serves candles over HTTP as the spot and USD-M futures REST APIs do.

It listens on 127.0.0.1 alone. One thread per connection, HTTP/1.1 with keep-alive, one write per answer.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
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


@dataclass(frozen=True, kw_only=True, slots=True)
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
        self._archive = ReplayArchive(self._markets, clock=clock, style=archive or ArchiveStyle())
        self.faults = faults
        self._log: deque[ReplayRequest] = deque(maxlen=LOG_LENGTH)
        streams = StreamServer(
            lambda name, symbol, interval: self._markets[name].series(symbol, interval),
            clock=clock,
            faults=lambda: self._stream_faults,
            note=self._note_stream,
        )
        self._server = LoopbackServer(self._respond, port=port, stream=streams.serve)
        self._thread: threading.Thread | None = None
        self._page_before: Answer | None = None

    def __enter__(self) -> Self:
        self._thread = self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of both markets, such as http://127.0.0.1:41234."""
        return self._server.url

    @property
    def config(self) -> ExchangeConfig:
        """The configuration that points a client here."""
        return ExchangeConfig(spot_url=self.url, um_url=self.url, spot_fallback_url="")

    @property
    def archive_config(self) -> ArchiveConfig:
        """The configuration that points a client of the bulk archive here."""
        return ArchiveConfig(archive_url=self.url, listing_url=self.url)

    @property
    def archive(self) -> ReplayArchive:
        """The archive built from the candles; its style, faults included, may be replaced."""
        return self._archive

    @property
    def stream_config(self) -> StreamConfig:
        """The configuration that points a stream here."""
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
        """Empty the log."""
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
        asked = dict(parse_qsl(parts.query))
        if is_for_bucket(parts.path, asked):
            return self._archived(parts.path, asked)
        routed = route(parts.path)
        if routed is None:
            self._note(parts.path, {}, missing := Answer(404, b""), weight=0, fault=None)
            return missing
        market, endpoint = routed
        try:
            params, error = parse_query(parts.query), None
        except RequestError as raised:
            params, error = {}, raised
        weight = request_weight(market, endpoint, params)
        limiter = self._limiters[market]
        used, refusal = limiter.spend(weight)
        if refusal is not None:
            answer = refusal_answer(refusal)
        elif error is not None:
            answer = error_answer(400, error.code, str(error))
        else:
            answer = self._answer(market, endpoint, params)
        fault = self._plan.strike(parts.path)
        if fault is not None and fault.kind == "stale":
            answer = self._page_before or answer
        elif fault is not None:
            answer = commit(fault, answer, limit=limiter.limit, now_ms=self.clock.now_ms)
        if answer.page is not None:
            self._page_before = answer
        self._note(parts.path, params, answer, weight=weight, fault=fault)
        counted = (("X-MBX-USED-WEIGHT", str(used)), ("X-MBX-USED-WEIGHT-1M", str(used)))
        return replace(answer, headers=(*answer.headers, *counted))

    def _archived(self, path: str, params: Mapping[str, str]) -> Answer:
        style = self._archive.style
        bucket: ArchiveBucket = self._archive if style.folder is None else FolderBucket(style.folder)
        answer = bucket_answer(bucket, path, params, page_size=style.page_size)
        fault = self._plan.strike(path)
        if fault is not None:
            answer = commit(fault, answer, limit=0, now_ms=self.clock.now_ms)
        self._note(path, params, answer, weight=0, fault=fault)
        return answer

    def _answer(self, market: Market, endpoint: str, params: Mapping[str, str]) -> Answer:
        try:
            return answer_for(self._markets[market], endpoint, params, self.clock)
        except RequestError as error:
            return error_answer(400, error.code, str(error))

    def _note_stream(self, path: str, params: Mapping[str, str], status: int, fault: Fault | None) -> None:
        self._note(path, params, Answer(status, b""), weight=0, fault=fault)

    def _note(
        self,
        path: str,
        params: Mapping[str, str],
        answer: Answer,
        *,
        weight: int,
        fault: Fault | None,
    ) -> None:
        request = ReplayRequest(
            method="GET",
            path=path,
            params=params,
            status=answer.status,
            weight=weight,
            rows=answer.page.count if answer.page else 0,
            fault=fault.kind if fault else None,
        )
        self._log.append(request)
        logger.debug("%s %s -> %d, %d rows", path, params, request.status, request.rows)


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
        if frame["quote_volume"].null_count():
            logger.warning(
                "%s: %d candles without quote_volume are served with an estimate",
                key,
                frame["quote_volume"].null_count(),
            )
