"""A whole site on loopback, as `kronos up` starts it: Prefect, MLflow, deployments and a worker.

Everything it writes lies below one folder, and every process it starts, directly or through the worker, ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from storage.layout import Home
from tests.support.nights import nested
from tests.support.ports import free_ports

__all__ = ["Site", "prefect_site", "restart", "wait_for"]

ROOT = Path(__file__).parents[2]
_TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
_FOREIGN = ("PREFECT_", "MLFLOW_", "KRONOS_", "HF_", "PYTEST_")


@dataclass
class Site:
    """A running site; `api` is what a browser's form would talk to."""

    folder: Path
    port: int
    mlflow_port: int
    service_port: int
    notify: str
    exported: Mapping[str, str] = field(default_factory=dict)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    up: subprocess.Popen[bytes] | None = None
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _session: requests.Session = field(default_factory=lambda: _patient_session())

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user would export in a fresh shell: nothing of this process's own Prefect settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {
            **inherited,
            "NO_PROXY": "127.0.0.1,localhost",
            "DO_NOT_TRACK": "true",
            "KRONOS_HOME": str(self.home.root),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": str(ROOT),
            **self.exported,
        }

    def command(self, line: str) -> str:
        """What one line prints, run against this site until it ends."""
        environment = self.environment | {"PREFECT_API_URL": self.api, "MLFLOW_TRACKING_URI": self.mlflow}
        done = subprocess.run(_arguments(line), env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{line} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, line: str, log: str, *, cwd: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start one line that stays, with its output in <folder>/<log>.log."""
        with (self.folder / f"{log}.log").open("wb") as output:
            process = subprocess.Popen(
                _arguments(line), cwd=cwd, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process

    def get(self, path: str) -> Any:
        return self._answer(self._session.get(f"{self.api}/{path}", timeout=30))

    def fetch(self, url: str) -> Any:
        """The JSON at any address on loopback."""
        return self._answer(self._session.get(url, timeout=30))

    def post(self, path: str, body: Any) -> Any:
        return self._answer(self._session.post(f"{self.api}/{path}", json=body, timeout=30))

    def patch(self, path: str, body: Any) -> None:
        response = self._session.patch(f"{self.api}/{path}", json=body, timeout=30)
        assert response.ok, f"{path}: {response.status_code} {response.text}"

    def submit(
        self, deployment: str, parameters: dict[str, Any], *, checked: bool = True
    ) -> requests.Response:
        """What the custom-run form of the Prefect UI sends; `checked` is its box "Validate parameters".

        Dotted settings are put into their sections.
        """
        filled = {
            name: nested(value) if isinstance(value, dict) else value for name, value in parameters.items()
        }
        body = {
            "name": "typed-in-the-form",
            "parameters": filled,
            "tags": self.deployments[deployment]["tags"],
            "state": {"type": "SCHEDULED", "message": "", "state_details": {"scheduled_time": None}},
            "empirical_policy": {"retries": None, "retry_delay": None},
            "work_queue_name": "default",
            "job_variables": {},
            "enforce_parameter_schema": checked,
        }
        identifier = self.deployments[deployment]["id"]
        return self._session.post(
            f"{self.api}/deployments/{identifier}/create_flow_run", json=body, timeout=30
        )

    def run(self, deployment: str, parameters: dict[str, Any], *, checked: bool = True) -> str:
        """Trigger a deployment and return the flow run's id."""
        return str(self._answer(self.submit(deployment, parameters, checked=checked))["id"])

    def finished(self, *runs: str, within_s: float) -> list[dict[str, Any]]:
        """The flow runs once each of them is in a terminal state."""
        return wait_for(
            lambda: self._all_terminal(runs), within_s=within_s, what=f"flow runs {', '.join(runs)} to end"
        )

    def training(self) -> Path | None:
        """The job that a child process trains now, once it has begun to tell its numbers."""
        for process in self._descendants():
            with suppress(psutil.Error):
                command = process.cmdline()
                if "kronos_model.train" in command:
                    job = Path(command[command.index("kronos_model.train") + 1])
                    if (job / "checkpoint").is_dir():
                        return job
        return None

    def slots(self) -> int:
        """Concurrency slots that are taken."""
        return sum(one["active_slots"] for one in self.post("v2/concurrency_limits/filter", {}))

    def log_of(self, run: str) -> list[dict[str, Any]]:
        """The log lines of a flow run as the UI lists them."""
        query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return list(self.post("logs/filter", query))

    def tails(self, lines: int = 40) -> str:
        """The last lines of every process's output."""
        return "\n".join(
            "\n".join([f"---- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]])
            for path in sorted([*self.folder.glob("*.log"), *self.home.root.glob("logs/*.log")])
        )

    def stop(self) -> None:
        """Terminate what was started, then kill whatever of it is left."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the site at once, as a power cut would."""
        left = list(self._descendants())
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=10)

    def _descendants(self) -> Iterator[psutil.Process]:
        """Every living process that inherited this site's home."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("KRONOS_HOME") == str(self.home.root):
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def _all_terminal(self, runs: Sequence[str]) -> list[dict[str, Any]] | None:
        query = {"flow_runs": {"id": {"any_": list(runs)}, "state": {"type": {"any_": list(_TERMINAL)}}}}
        ended = {one["id"]: one for one in self.post("flow_runs/filter", query)}
        return [ended[run] for run in runs] if len(ended) == len(runs) else None

    @staticmethod
    def _answer(response: requests.Response) -> Any:
        assert response.ok, (
            f"{response.request.method} {response.url}: {response.status_code} {response.text}"
        )
        return response.json()


@contextmanager
def prefect_site(folder: Path, *, notify: str, exported: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Start a site over a folder, that may hold an earlier one; posts about bad runs go to `notify`.

    `exported` is what the user has in the environment besides.
    """
    site = Site(folder, *free_ports(3), notify=notify, exported=exported or {})
    try:
        _start(site)
        yield site
    except BaseException as error:
        error.add_note(site.tails())
        raise
    finally:
        site.stop()


def restart(site: Site) -> None:
    """Start a site again that was stopped or killed, where it was."""
    _start(site)


def wait_for(check: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """The first truthy answer of `check`, asked twice a second."""
    deadline = time.monotonic() + within_s
    while not (answer := check()):
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s in vain for {what}"
        time.sleep(0.5)
    return answer


def _start(site: Site) -> None:
    """Schedules are paused, so that nothing starts by itself; from elsewhere, so that no path is relative."""
    elsewhere = site.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    ports = f"--prefect-port {site.port} --mlflow-port {site.mlflow_port} --service-port {site.service_port}"
    site.up = site.start(f"kronos up --no-schedules --notify {site.notify} {ports}", "up", cwd=elsewhere)
    wait_for(lambda: _polling(site), within_s=300, what="the worker to poll")
    site.deployments = {one["name"]: one for one in site.post("deployments/filter", {})}


def _arguments(line: str) -> list[str]:
    """The line for this interpreter, without a shell or PATH."""
    program, *arguments = line.split()
    assert program == "kronos"
    return [sys.executable, "-m", "flows.cli", *arguments]


def _polling(site: Site) -> bool:
    assert site.up is not None
    assert site.up.poll() is None, "the site ended by itself"
    if "worker" not in (site.folder / "up.log").read_text():
        return False
    return any(one["status"] == "ONLINE" for one in site.post("work_pools/local-process/workers/filter", {}))


def _patient_session() -> requests.Session:
    """As patient as Prefect's own client: the server answers 503 while its SQLite is locked."""
    session = requests.Session()
    session.trust_env = False
    retry = Retry(
        connect=0,
        status=6,
        backoff_factor=0.3,
        status_forcelist=[503],
        allowed_methods=None,
        raise_on_status=False,
    )
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session
