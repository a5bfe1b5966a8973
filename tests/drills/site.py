"""A home, and everything outside it, that lives through many nights: exchange, Hub, Prefect and MLflow servers.

Nights are processes of their own, one after another; the exchange's clock goes on a day from one to the next.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from storage.layout import Home
from storage.registry import read_nights
from storage.schema import SeriesKey
from tests.drills.faults import Trouble
from tests.support.loopback_hub import LoopbackHub
from tests.support.nights import CANDLES, SERIES, START_MS, nested, quick_settings

__all__ = ["DrillSite", "Told", "drill_site"]

ROOT = Path(__file__).parents[2]
HOUR_MS = 3_600_000
NIGHT_S = 300.0  # a night takes seconds; one that hangs is a finding
_FOREIGN = ("PREFECT_", "MLFLOW_", "KRONOS_", "HF_", "DRILL_")
_MARK = "DRILL_WORKER"
_TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
_SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
_KEEP_NOTHING = (
    "checkpoint_days", "token_days", "job_days", "abandoned_days", "dataset_days", "model_days",
    "tracked_model_days", "picture_days", "draft_days",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """How a night ended: its exit status, its last words, its duration, and whether the fault struck."""

    code: int
    out: str
    err: str
    seconds: float
    struck: bool

    @property
    def sentence(self) -> str:
        """The one sentence of a night that failed; empty where there is none."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        return last.removeprefix("error: ") if last.startswith("error: ") else ""


class DrillSite:
    """Where the nights of a drill happen.

    `mlflow` is None where the store is SQLite in the home; a `shared` Prefect server knows runs of others, too.
    """

    def __init__(
        self, folder: Path, *, nights: int, hub: LoopbackHub, prefect: str, shared: bool, mlflow: int | None
    ) -> None:
        self.folder, self.hub, self.prefect, self.mlflow = folder, hub, prefect, mlflow
        self.home = Home.at(folder / "home")
        keys = [SeriesKey.parse(name, "1h") for name in SERIES]
        count = CANDLES + 24 * nights
        self.candles = dict(synthetic_market(keys, start_ms=START_MS, count=count, seed=7))
        clock = ReplayClock(START_MS + CANDLES * HOUR_MS + HOUR_MS // 2)
        self.exchange = ReplayExchange(self.candles, clock=clock)
        self._mlflow_server: subprocess.Popen[bytes] | None = None
        self._shared, self._began = shared, datetime.now(UTC).isoformat()
        self._deployed = ""  # the deployment of nightly, once there is one

    @property
    def environment(self) -> dict[str, str]:
        """What a night's process is told."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        servers = {"PREFECT_API_URL": self.prefect}
        if self.mlflow is not None:
            servers["MLFLOW_TRACKING_URI"] = self.mlflow_url
        return {
            **inherited,
            **servers,
            **self.hub.environment(self.folder / "hf"),
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }

    @property
    def mlflow_url(self) -> str:
        """The address of the MLflow server; of the store where there is none."""
        return f"http://127.0.0.1:{self.mlflow}" if self.mlflow is not None else self.home.mlflow_uri

    @property
    def now_ms(self) -> int:
        """The exchange's time."""
        return self.exchange.clock.now_ms

    def night(self, trouble: Trouble, *, seed: int) -> tuple[Told, ...]:
        """Run a night, or two at once, through its trouble."""
        count, run = 2 if trouble.twice else 1, self._by_worker if trouble.worker else self._night
        with ThreadPoolExecutor(count) as pool:
            running = [pool.submit(run, trouble, seed) for _ in range(count)]
            told = tuple(one.result() for one in running)
        self.exchange.faults = ()
        self.hub.faults = []
        return told

    def forget(self) -> None:
        """What `kronos gc` lets go of when nothing but the champion's is kept."""
        ages = [f"--set={name}=0" for name in _KEEP_NOTHING]
        done = subprocess.run(
            [*self._kronos("flows.cli"), "gc", "--yes", *ages],
            env=self.environment, capture_output=True, text=True, timeout=NIGHT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def megabytes(self) -> float:
        """What the home takes on the disk."""
        return sum(path.stat().st_size for path in self.home.root.rglob("*") if path.is_file()) / 1e6

    def asked(self, path: str, body: Any) -> Any:
        """A question to the Prefect server."""
        answer = requests.post(f"{self.prefect}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def flow_runs(self, *states: str) -> list[dict[str, Any]]:
        """The flow runs of this drill that are in one of these states, oldest first."""
        which: dict[str, Any] = {"state": {"type": {"any_": states}}}
        if self._shared:
            which["expected_start_time"] = {"after_": self._began}
        return list(self.asked("flow_runs/filter", {"flow_runs": which, "sort": "START_TIME_ASC"}))

    def begin_mlflow(self) -> None:
        """Start the MLflow server unless it runs, and wait until it answers."""
        if self.mlflow is None or (self._mlflow_server and self._mlflow_server.poll() is None):
            return
        line = [*self._kronos("flows.cli"), "ui", "mlflow", "--port", str(self.mlflow)]
        environment = {name: text for name, text in self.environment.items() if name not in _SERVERS}
        self._mlflow_server = _server(line, environment, self.folder / "mlflow.log")
        _answering(f"{self.mlflow_url}/health")

    def kill_mlflow(self) -> None:
        """SIGKILL to the MLflow server and its workers."""
        self.signal_mlflow(signal.SIGKILL)
        if self._mlflow_server is not None:
            self._mlflow_server.wait()

    def signal_mlflow(self, number: int) -> None:
        """A signal to the MLflow server and its workers."""
        if self._mlflow_server is not None and self._mlflow_server.poll() is None:
            os.killpg(self._mlflow_server.pid, number)

    def _kronos(self, module: str) -> list[str]:
        return [sys.executable, "-m", module, "--home", str(self.home.root)]

    def _night(self, trouble: Trouble, seed: int) -> Told:
        settings = self._settings(seed) | trouble.settings
        options = [f"--set={name}={value}" for name, value in settings.items()]
        module = "tests.drills.night_process" if trouble.environment else "flows.cli"
        began = time.monotonic()
        process = subprocess.Popen(
            [*self._kronos(module), "run", "--recipe", "demo", *options],
            env=self.environment | trouble.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as pool:
            struck = trouble.meanwhile and pool.submit(trouble.meanwhile, psutil.Process(process.pid))
            try:
                out, err = process.communicate(timeout=NIGHT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        hit = struck.result() if struck else True
        return Told(process.returncode, out, err, time.monotonic() - began, hit)

    def _by_worker(self, trouble: Trouble, seed: int) -> Told:
        """A night of the deployment, by a worker of its own, until no process of either is left."""
        self._deploy()
        began, mark = time.monotonic(), str(uuid.uuid4())
        environment = self.environment | {_MARK: mark, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        worker = _server([*self._kronos("flows.cli"), "worker"], environment, self.folder / "worker.log")
        parameters = {"recipe": "demo", "settings": nested(self._settings(seed) | trouble.settings)}
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        run = self.asked(f"deployments/{self._deployed}/create_flow_run", body)["id"]
        struck = trouble.meanwhile(psutil.Process(worker.pid)) if trouble.meanwhile else True
        state = self._ended(run, mark)
        _end(worker)
        sentence = f"error: {state['message'] or state['type']}"
        code = {"COMPLETED": 0, "FAILED": 1}.get(state["type"], -signal.SIGKILL)
        verdict = f"Gate: {read_nights(self.home, 'demo')[-1]['verdict']}" if code == 0 else ""
        return Told(code, verdict, sentence if code else "", time.monotonic() - began, struck)

    def _deploy(self) -> None:
        """What prefect.yaml has, once, with every schedule paused."""
        if self._deployed:
            return
        done = subprocess.run(
            [*self._kronos("flows.cli"), "deploy", "--no-schedules"],
            env=self.environment, capture_output=True, text=True, timeout=NIGHT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = self.asked("deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
        self._deployed = found[0]["id"]

    def _ended(self, run: str, mark: str) -> dict[str, Any]:
        """The state of a flow run once it has ended, or once the worker and all that it started are gone."""
        deadline = time.monotonic() + NIGHT_S
        while time.monotonic() < deadline:
            living = bool(_marked(mark))
            answer = requests.get(f"{self.prefect}/flow_runs/{run}", timeout=30)
            answer.raise_for_status()
            state: dict[str, Any] = answer.json()["state"]
            if state["type"] in _TERMINAL or not living:
                return state
            time.sleep(1)
        raise TimeoutError(
            f"expected the worker's night to end within {NIGHT_S:.0f} s, found it {state['type']}"
        )

    def _settings(self, seed: int) -> dict[str, Any]:
        """Of a challenger that was trained a little longer than the one before, so that many are promoted."""
        return quick_settings(Path()) | {
            "replay": "",
            "seed": seed,
            "predictor.steps_per_epoch": 8 + 8 * seed,
            "gate.confidence": 0.5,
            "gate.coverage_high": 1.0,
            "exchange.spot_url": self.exchange.url,
            "exchange.um_url": self.exchange.url,
            "exchange.spot_fallback_url": "",
            "exchange.attempts": 4,
            "archive.archive_url": self.exchange.url,
            "archive.listing_url": self.exchange.url,
            "publish.namespace": self.hub.user,
            "publish.policy": "always",
        }


@contextmanager
def drill_site(folder: Path, *, nights: int, prefect: str = "", mlflow: bool = False) -> Iterator[DrillSite]:
    """A site for so many nights, with a Prefect server of its own unless one is given; `mlflow` as a server too."""
    with ExitStack() as stack:
        hub = stack.enter_context(LoopbackHub())
        port = _free_port()
        url = prefect or f"http://127.0.0.1:{port}/api"
        site = DrillSite(
            folder,
            nights=nights,
            hub=hub,
            prefect=url,
            shared=bool(prefect),
            mlflow=_free_port() if mlflow else None,
        )
        stack.enter_context(site.exchange)
        if not prefect:
            line = [*site._kronos("flows.cli"), "ui", "prefect", "--port", str(port)]
            environment = {name: text for name, text in site.environment.items() if name not in _SERVERS}
            server = _server(line, environment, folder / "prefect.log")
            stack.callback(_end, server)
            _answering(f"{url}/health")
        stack.callback(site.kill_mlflow)
        site.begin_mlflow()
        yield site


def _server(line: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            line, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _marked(mark: str) -> list[psutil.Process]:
    """The living processes that inherited the mark of a worker."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def _answering(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass  # not yet
        time.sleep(0.5)
    raise TimeoutError(
        f"expected {url} to answer within 120 s, found nothing there; read the log beside the home"
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
