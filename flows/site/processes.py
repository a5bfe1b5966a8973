"""`kronos up` and `kronos worker`: the processes of a site on one machine, started and stopped together.

Each is in a session of its own, so that Ctrl-C reaches only this process, which then stops them in order: first the
runs, which leave resumable jobs and tell Prefect and MLflow how they ended, then the worker, then the servers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from flows.config import ConfigError
from flows.site.signals import stop_on_signals
from storage.layout import Home

__all__ = [
    "POOL",
    "ServerProcess",
    "forecast_service",
    "mlflow_service",
    "prefect_service",
    "refuse_taken",
    "run_site",
    "server_url",
    "worker_service",
]

HOST = "127.0.0.1"
POOL = "local-process"

_START_S = 180.0
_STOP_S = 15.0
_RUN_STOP_S = 40.0  # a cancelled training child has 6 s, Prefect's engine 30 s
_POLL_S = 0.5
_YOUNG_S = 60.0  # what ends sooner after its start would only end again
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


@dataclass
class ServerProcess:
    """One process of a site."""

    name: str
    command: Sequence[str]
    log: Path
    port: int = 0  # of a server
    api: str = ""  # below which path its API is
    variable: str = ""  # the environment variable that tells others where that is
    drain: bool = False  # its children are runs, which end before it does
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0

    @property
    def url(self) -> str:
        """Where people find it; empty for what is no server."""
        return f"http://{HOST}:{self.port}" if self.port else ""

    @property
    def address(self) -> str:
        """Where programs find it."""
        return self.url + self.api

    def start(self) -> None:
        """Start it, its output in its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.began = time.monotonic()

    def wait_until_healthy(self, stop: threading.Event) -> None:
        """Return once it answers, or `stop` is set. Raises ConfigError where it ends or stays silent."""
        deadline = time.monotonic() + _START_S
        while self.port and not stop.is_set() and not self._answers():
            if not self.alive() or time.monotonic() > deadline:
                raise ConfigError(f"Expected {self.name} to answer at {self.url}, found {self.last_words()}.")
            stop.wait(_POLL_S)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End its runs, then itself; what does not end in time is killed."""
        if self.process is None or not self.alive():
            return
        if self.drain:
            _end_runs(psutil.Process(self.process.pid))
        everything = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(everything, timeout=_STOP_S)
        for one in left:
            one.kill()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return f"'{said[-1][:200]}' in {self.log}" if said else f"no word in {self.log}"

    def _answers(self) -> bool:
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy has no business on the loopback
                return session.get(f"{self.address}/health", timeout=5).ok
        except requests.RequestException:
            return False


def prefect_service(home: Home, port: int) -> ServerProcess:
    """A Prefect server over the home's database."""
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return ServerProcess("Prefect", command, _log(home, "prefect"), port, "/api", "PREFECT_API_URL")


def mlflow_service(home: Home, port: int, store: str) -> ServerProcess:
    """An MLflow server over `store`, which exists and is up to date.

    A command line is for everybody on the machine to read, so the store, and its password, is in the environment.
    """
    command = [
        "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--artifacts-destination", str(home.mlartifacts),
    ]  # fmt: skip
    private = {"MLFLOW_BACKEND_STORE_URI": store}
    return ServerProcess(
        "MLflow", command, _log(home, "mlflow"), port, variable="MLFLOW_TRACKING_URI", environment=private
    )


def forecast_service(home: Home, port: int) -> ServerProcess:
    """The forecast API and the dashboard over the home's champions."""
    command = ["flows.cli", "--home", str(home.root), "serve", "--host", HOST, "--port", str(port)]
    return ServerProcess("service", command, _log(home, "service"), port)


def worker_service(home: Home, pool: str) -> ServerProcess:
    """A worker of the pool."""
    command = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
    return ServerProcess("worker", command, _log(home, "worker"), drain=True)


def server_url() -> str:
    """PREFECT_API_URL. Raises ConfigError where it is not set: a throw-away server would take everything with it."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    raise ConfigError(
        "Expected a Prefect server in PREFECT_API_URL, found none; `kronos up` starts one and deploys to it, or set "
        "it to yours, such as http://127.0.0.1:4200/api."
    )


def run_site(
    services: Sequence[ServerProcess],
    *,
    ready: Callable[[ServerProcess], object],
    between: Callable[[], object] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Start `services` in order, `between` before the last one, and keep them running until Ctrl-C, SIGTERM or `stop`.

    One that ends by itself is started again; ConfigError when it ends within a minute of its start.
    """
    stop = stop or threading.Event()
    with stop_on_signals(stop), ExitStack() as stack:
        for service in services:
            stack.callback(service.stop)  # the last one first
        for service in services[:-1]:
            service.start()
        for service in services[:-1]:
            service.wait_until_healthy(stop)
            ready(service)
        if not stop.is_set():
            between()
            services[-1].start()
            services[-1].wait_until_healthy(stop)
            ready(services[-1])
        while not stop.wait(_POLL_S):
            _look_after(services)


def _look_after(services: Sequence[ServerProcess]) -> None:
    for service in services:
        if service.alive():
            continue
        if time.monotonic() - service.began < _YOUNG_S:
            raise ConfigError(
                f"Expected {service.name} to keep running, found it ended; {service.last_words()}."
            )
        logger.warning("%s ended by itself (%s); it is started again.", service.name, service.last_words())
        service.start()


def _end_runs(worker: psutil.Process) -> None:
    """Tell the runs of a worker to end, and wait: each is crashed with a reason, its slot free, its job resumable."""
    deadline = time.monotonic() + _RUN_STOP_S
    told: set[int] = set()
    while time.monotonic() < deadline and (runs := worker.children()):
        for run in runs:
            if run.pid not in told:
                told.add(run.pid)
                run.terminate()
        psutil.wait_procs(runs, timeout=_POLL_S)


def refuse_taken(services: Sequence[ServerProcess]) -> None:
    """Raise ConfigError where somebody listens on the port of one of them."""
    for service in services:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, service.port))
            except OSError as error:
                raise ConfigError(
                    f"Expected port {service.port} of {HOST} to be free for {service.name}, found it taken; stop what "
                    f"listens there (`kronos up` in another terminal?) or choose another with "
                    f"--{service.name.lower()}-port."
                ) from error


def _log(home: Home, name: str) -> Path:
    return home.root / "logs" / f"{name}.log"


def _die_with_parent() -> None:
    """On Linux: SIGTERM once the process that started it is gone, however suddenly."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
