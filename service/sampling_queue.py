"""One sampler for all requests: a bounded queue, requests that can be drawn together drawn together.

All of its state belongs to the event loop; only the drawing itself runs in a thread. S samples, H horizon.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from kronos_model.errors import ModelError
from kronos_model.served import context_of
from service.champion_models import Serving
from service.config import ServiceConfig
from service.errors import Refused
from service.prometheus_metrics import Metrics
from storage.past import Past

__all__ = ["SamplingQueue", "SamplingRequest"]

Paths = NDArray[np.float32]  # (S, H, 6)

LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRequest:
    """What is to be drawn."""

    serving: Serving
    past: Past
    samples: int
    seed: int

    @property
    def name(self) -> Hashable:
        """Orders of one name get the same paths."""
        past, digests = self.past, self.serving.digests
        seen = hashlib.blake2b(past.features.tobytes() + past.history.tobytes(), digest_size=16).digest()
        return digests, past.key, past.origin_ms, len(past.future), self.samples, self.seed, seen

    @property
    def kind(self) -> Hashable:
        """Orders of one kind can be drawn in one call."""
        past = self.past
        return self.serving.digests, len(past.history), len(past.open_time), len(past.future), self.samples


@dataclass(slots=True, eq=False)
class _Ticket:
    """An order at work, and how many requests wait for it."""

    order: SamplingRequest
    name: Hashable
    paths: asyncio.Future[Paths]
    waiters: int = 0


class _Abandoned(Exception):  # noqa: N818  # nobody is left to answer
    pass


class SamplingQueue:
    """Use `paths` and `run` on one event loop."""

    def __init__(self, config: ServiceConfig, watch: Metrics) -> None:
        self._config = config
        self._watch = watch
        self._tickets: dict[Hashable, _Ticket] = {}  # waiting or at work
        self._waiting: list[_Ticket] = []
        self._kept: OrderedDict[Hashable, Paths] = OrderedDict()
        self._news = asyncio.Event()
        self._seconds = 0.5  # what an order has taken lately
        self._closing = False

    @property
    def waiting(self) -> int:
        """Orders that wait or are drawn."""
        return len(self._tickets)

    async def paths(self, order: SamplingRequest) -> Paths:
        """The paths (S, H, 6) of an order. Raises Refused when there is no room or no time."""
        name = order.name
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        ticket = self._tickets.get(name) or self._enter(order, name)
        ticket.waiters += 1
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await asyncio.shield(ticket.paths)
        except TimeoutError:
            raise Refused(
                504,
                f"Expected the forecast within {self._config.timeout_s:g} s, found the sampler too busy; "
                "ask for fewer samples or a shorter horizon.",
                retry_s=self._retry_s(),
            ) from None
        finally:
            ticket.waiters -= 1

    async def run(self) -> None:
        """Draw what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="sampler", initializer=self._prepare) as thread:
            try:
                while True:
                    await self._news.wait()
                    batch = self._next()
                    if not batch:
                        self._news.clear()
                        continue
                    began = time.monotonic()
                    await loop.run_in_executor(thread, self._draw, batch, loop)
                    seconds = time.monotonic() - began
                    self._seconds = 0.8 * self._seconds + 0.2 * seconds / len(batch)
                    self._watch.drawn(len(batch), seconds)
            finally:
                self._closing = True
                for ticket in list(self._tickets.values()):
                    refusal = Refused(
                        503, "Expected the service to run, found that it is stopping; ask again.", retry_s=5
                    )
                    _settle(ticket, refusal)

    def _enter(self, order: SamplingRequest, name: Hashable) -> _Ticket:
        if len(self._tickets) >= self._config.queue:
            raise Refused(
                503,
                f"Expected room for another forecast, found {len(self._tickets)} waiting; ask again later.",
                retry_s=self._retry_s(),
            )
        ticket = _Ticket(order, name, asyncio.get_running_loop().create_future())
        self._tickets[name] = ticket
        self._waiting.append(ticket)
        self._watch.waiting(len(self._tickets))
        self._news.set()
        return ticket

    def _next(self) -> list[_Ticket]:
        """The oldest order with those of its kind, as many as fit; those nobody waits for are dropped."""
        for ticket in [one for one in self._waiting if not one.waiters]:
            self._waiting.remove(ticket)
            self._leave(ticket)
        if not self._waiting:
            return []
        first = self._waiting[0].order
        room = max(1, self._config.batch_rows // first.samples)
        batch = [ticket for ticket in self._waiting if ticket.order.kind == first.kind][:room]
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        return batch

    def _draw(self, batch: list[_Ticket], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: the answers to a batch, handed to the event loop."""
        for ticket, result in zip(batch, self._results(batch), strict=True):
            loop.call_soon_threadsafe(self._answer, ticket, result)

    def _results(self, batch: list[_Ticket]) -> list[Paths | Exception]:
        """The paths of each order; where a batch fails, each order has another try by itself."""
        try:
            return list(self._sample(batch))
        except _Abandoned as error:
            return [error for _ in batch]
        except Exception as error:  # noqa: BLE001  # the edge of a thread; raised again where it is awaited
            if len(batch) == 1:
                return [error]
            return [result for ticket in batch for result in self._results([ticket])]

    def _sample(self, batch: list[_Ticket]) -> Iterator[Paths]:
        def progress(done: int, total: int) -> None:
            if self._closing or not any(ticket.waiters for ticket in batch):
                raise _Abandoned

        orders = [ticket.order for ticket in batch]
        serving = orders[0].serving
        forecast = serving.served.paths(
            context_of([one.past for one in orders]),
            replace(serving.sampling(self._config), samples=orders[0].samples),
            [one.seed for one in orders],
            progress=progress,
        )
        return (paths.copy() for paths in forecast.paths)  # so that one kept does not hold its whole batch

    def _answer(self, ticket: _Ticket, result: Paths | Exception) -> None:
        if isinstance(result, np.ndarray):
            self._kept[ticket.name] = result
            if len(self._kept) > self._config.cache:
                self._kept.popitem(last=False)
        if isinstance(result, _Abandoned) and ticket.waiters:  # somebody came just then
            self._waiting.append(ticket)
            self._news.set()
            return
        self._leave(ticket)
        _settle(ticket, Refused(422, str(result)) if isinstance(result, ModelError) else result)

    def _leave(self, ticket: _Ticket) -> None:
        if self._tickets.get(ticket.name) is ticket:
            del self._tickets[ticket.name]
        self._watch.waiting(len(self._tickets))

    def _retry_s(self) -> int:
        return max(1, min(LONGEST_RETRY_S, math.ceil(self._seconds * len(self._tickets))))

    def _prepare(self) -> None:
        if self._config.threads is not None:
            torch.set_num_threads(self._config.threads)


def _settle(ticket: _Ticket, result: Paths | Exception) -> None:
    if ticket.paths.done():
        return
    if isinstance(result, Exception):
        ticket.paths.set_exception(result)
        ticket.paths.exception()  # seen: nobody may wait any more
    else:
        ticket.paths.set_result(result)
