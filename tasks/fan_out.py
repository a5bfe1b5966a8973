"""Many nights at once, on this machine or on a cluster of them, by Prefect's Dask task runner.

A Dask worker runs its tasks in threads, which no signal reaches and no time limit cuts off. So a night is a child
process of its worker, with a main thread of its own. Its task waits for it, and ends it where the flow run that asked
for it has stopped or is gone: Dask then calls the task cancelled, and lets its thread run on.

Everybody works in one home: a worker that does not see it, or that is another version, is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests
from prefect import task
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic_core import to_json

from storage.errors import StorageError
from storage.layout import Home
from tasks.policies import IDEMPOTENT

__all__ = ["Cluster", "Ended", "NightFailed", "NightOrder", "can_fan_out", "fanned_out"]

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_STOP_S = 15.0  # a night has its training child to end, which gets 6 s
_CONNECT_S = 10.0
_MODULE = "flows.night_process"


class NightFailed(StorageError):  # noqa: N818  # it says what happened
    """A night that did not get to its end, and why; one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NightOrder:
    """One night: the recipe of one series, and what its flow is called with."""

    recipe: str
    series: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A night that has ended: its summary, or in one sentence why there is none."""

    order: NightOrder
    summary: dict[str, Any] | None = None
    failure: str = ""


def can_fan_out() -> bool:
    """Whether the extra `dask` is installed."""
    return find_spec("prefect_dask") is not None


@task(name="night", task_run_name="night {series}", **IDEMPOTENT)
def night_elsewhere(root: str, recipe: str, series: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """One night as a child process of a Dask worker. Raises NightFailed with the child's own sentence."""
    log = Path(root) / "logs" / f"night-{recipe}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kronos-night-") as scratch:
        answer = Path(scratch) / "answer.json"
        with log.open("wb") as output:
            code = _child(["-m", _MODULE, root, str(answer), str(os.getpid())], parameters, output)
        told: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if "summary" in told:
        return dict(told["summary"])
    raise NightFailed(told.get("failure") or _complaint(log, code))


class Cluster:
    """Workers that are ready for nights of one home."""

    def __init__(self, home: Home, runner: Any) -> None:
        self._home, self._runner = home, runner

    def run(self, orders: Sequence[NightOrder]) -> Iterator[Ended]:
        """Every night, as they end. However this is left, no night goes on."""
        import distributed

        as_completed: Any = distributed.as_completed
        running = {}
        try:
            for order in orders:
                parameters = {"root": str(self._home.root), **asdict(order)}
                future = self._runner.submit(night_elsewhere, parameters=parameters)
                running[future.wrapped_future] = (order, future)
            for done in as_completed(list(running), loop=self._runner.client.loop):
                yield _ended(*running[done])
        finally:
            if any(not one.done() for one in running):
                self._stop(list(running))

    def _stop(self, futures: list[Any]) -> None:
        """Call every night off and wait until none is left: a worker that is closed would not wait."""
        client = self._runner.client
        client.cancel(futures)
        deadline = time.monotonic() + _STOP_S + 2 * _POLL_S
        while any(client.run(_busy, on_error="ignore").values()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


@contextmanager
def fanned_out(home: Home, *, workers: int, address: str | None) -> Iterator[Cluster]:
    """So many workers on this machine, or those of the scheduler at `address`.

    Raises StorageError where there is none, or where one of them cannot work in this home.
    """
    if not can_fan_out():
        raise StorageError(
            "expected Prefect's Dask task runner, found no package prefect_dask; install the extra `dask`, or leave "
            "the cluster out and the nights run one after another"
        )
    from prefect_dask.task_runners import DaskTaskRunner

    if address:
        runner = DaskTaskRunner(address=address, client_kwargs={"timeout": _CONNECT_S})
    else:
        runner = DaskTaskRunner(cluster_kwargs=_local(workers))
    with runner:
        _check(home, runner, address)
        yield Cluster(home, runner)


def _local(workers: int) -> dict[str, Any]:
    """Processes on the loopback alone, one night each; their memory is in children that Dask does not count."""
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "memory_limit": 0,
        "silence_logs": logging.ERROR,
        "env": {"PREFECT_API_URL": _api()},
    }


def _check(home: Home, runner: Any, address: str | None) -> None:
    """Refuse a scheduler that does not answer, that has no workers, or whose workers cannot work in this home."""
    try:
        client = runner.client
    except OSError as error:
        raise StorageError(
            f"expected a Dask scheduler at {address}, found that none answers within {_CONNECT_S:g} s; start one with "
            "`dask scheduler`, or correct the address"
        ) from error
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise StorageError(
            f"expected workers at the Dask scheduler {address}, found none; start some with `dask worker {address} "
            "--nthreads 1`"
        )
    with _mark(home) as (path, text):
        facts = {"path": str(path), "text": text, "api": _api(), **_own_facts()}
        for worker, found in client.run(_problem, facts).items():
            if found:
                raise StorageError(f"expected the Dask worker {worker} to work in {home.root}, found {found}")


@contextmanager
def _mark(home: Home) -> Iterator[tuple[Path, str]]:
    """A file in the home that only who sees the same home can read."""
    path, text = home.root / f".fan-out-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    path.write_text(text)
    try:
        yield path, text
    finally:
        path.unlink(missing_ok=True)


def _problem(facts: Mapping[str, str]) -> str:
    """On a worker: why it cannot work in this home; nothing where it can."""
    path = Path(facts["path"])
    try:
        seen = path.read_text()
    except OSError:
        seen = ""
    if seen != facts["text"]:
        return (
            "that it does not see that folder; mount the same file system there under the same path, or use the "
            "workers of this machine"
        )
    if not os.access(path.parent, os.W_OK):
        return "that it may not write there; start it as a user who may"
    own = _own_facts()
    if own["version"] != facts["version"]:
        return f"kronos-nightly {own['version']} there and {facts['version']} here; install the same on both"
    if own["tracking"] != facts["tracking"]:
        return "another MLFLOW_TRACKING_URI; export the same one there before its start"
    try:
        requests.get(f"{facts['api']}/health", timeout=_CONNECT_S).raise_for_status()
    except requests.RequestException as error:
        return (
            f"that it does not reach Prefect at {facts['api']} ({type(error).__name__}); set PREFECT_API_URL to an "
            "address that every machine reaches"
        )
    return ""


def _own_facts() -> dict[str, str]:
    """What must be the same everywhere. Of MLflow's address, which may hold a password, its digest alone."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    return {"version": version("kronos-nightly"), "tracking": hashlib.sha256(tracking.encode()).hexdigest()}


def _busy(dask_worker: Any) -> int:
    """On a worker: how many of its tasks have a thread that has not come back."""
    return len(dask_worker.state.executing) + len(dask_worker.state.long_running)


def _ended(order: NightOrder, future: Any) -> Ended:
    from distributed import CancelledError, KilledWorker

    try:
        found = future.result(raise_on_failure=False)
    except KilledWorker:
        failure = "its worker was killed again and again, for want of memory perhaps; run with fewer workers"
        return Ended(order=order, failure=failure)
    except CancelledError:
        failure = "the Dask scheduler was lost; start it again and run the same again"
        return Ended(order=order, failure=failure)
    if isinstance(found, BaseException):
        return Ended(order=order, failure=str(found) or type(found).__name__)
    return Ended(order=order, summary=found)


def _child(arguments: Sequence[str], parameters: Mapping[str, Any], output: Any) -> int:
    """The night's process; whatever ends the wait also ends the process, which leaves resumable jobs."""
    order = to_json({"flow_run": flow_run.id, "tags": flow_run.tags, "parameters": parameters})
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PREFECT_API_URL": _api()},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is the flow's, which calls off what is under way
    )
    try:
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin as pipe:  # it has ended already, and its log says why
            pipe.write(order)
        while child.poll() is None:
            if _called_off():
                raise NightFailed("the night was called off; the next run goes on from what it had done")
            time.sleep(_POLL_S)
        return int(child.returncode)
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _called_off() -> bool:
    """Whether nobody waits for the Dask task that this thread runs."""
    from distributed import get_worker

    worker = get_worker()
    known = worker.state.tasks.get(worker.get_current_task())
    return known is None or known.state == "cancelled"


def _complaint(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = f"'{lines[-1][:200]}'" if lines else "no word"
    return f"its process ended with exit code {code} ({last} in {log}); run the same again, which goes on from there"


def _api() -> str:
    """Where this process reaches Prefect, also where that is an embedded server of its own."""
    with get_client(sync_client=True) as client:
        return str(client.api_url).rstrip("/")
