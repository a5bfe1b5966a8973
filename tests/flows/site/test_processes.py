"""The processes of a site: what they refuse, how they end. tests/flows/test_deployment.py runs a whole one."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.config import ConfigError
from flows.site.processes import ServerProcess, run_site
from tests.support.prefect_site import wait_for
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
SLEEPER = "import time\nprint('began', flush=True)\ntime.sleep(600)\n"
WORKER = """
import signal, subprocess, sys, time
run = subprocess.Popen([sys.executable, "-c", '''
import signal, sys, time
def end(*_):
    print("run ended", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("run began", flush=True)
time.sleep(600)
'''])
def end(*_):
    print("worker ended", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
run.wait()
time.sleep(600)
"""
SITE = """
import sys
from pathlib import Path
from flows.site.processes import ServerProcess, run_site
folder = Path(sys.argv[1])
service = ServerProcess("sleeper", ["sleeper"], folder / "log", environment={"PYTHONPATH": str(folder)})
run_site([service], ready=lambda one: print(one.process.pid, flush=True))
"""

Make = Callable[..., ServerProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A service that runs some code; what is left of it is killed in the end."""
    made: list[ServerProcess] = []

    def service(code: str, **options: bool) -> ServerProcess:
        (tmp_path / "program.py").write_text(code)
        environment = {"PYTHONPATH": str(tmp_path)}
        made.append(ServerProcess("it", ["program"], tmp_path / "log", environment=environment, **options))
        return made[-1]

    yield service
    for one in made:
        if one.process is not None and one.alive():
            one.process.kill()


def said(service: ServerProcess, line: str) -> None:
    wait_for(lambda: service.log.exists() and line in service.log.read_text(), within_s=60, what=line)


def test_a_taken_port_is_refused_before_anything_starts(terminal: Terminal) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        complaint = terminal.refused("up", "--prefect-port", str(port))
    assert f"Expected port {port} of 127.0.0.1 to be free for Prefect, found it taken" in complaint
    assert "choose another with --prefect-port" in complaint


@pytest.mark.parametrize("command", ["deploy", "worker"])
def test_without_a_server_there_is_nothing_to_deploy_to_or_to_work_for(
    command: str, terminal: Terminal
) -> None:
    complaint = terminal.refused(command)
    assert "Expected a Prefect server in PREFECT_API_URL, found none; `kronos up` starts one" in complaint


def test_the_runs_of_a_worker_end_before_it_does(make: Make) -> None:
    worker = make(WORKER, drain=True)
    worker.start()
    said(worker, "run began")
    worker.stop()
    assert worker.log.read_text().splitlines() == ["run began", "run ended", "worker ended"]


def test_a_service_that_ends_at_once_is_told_with_its_last_words(make: Make) -> None:
    service = make("raise SystemExit('no such database')")
    with pytest.raises(
        ConfigError, match="Expected it to keep running, found it ended; 'no such database' in"
    ):
        run_site([service], ready=lambda one: None)


def test_a_service_that_ends_after_long_work_is_started_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make(SLEEPER)
    monkeypatch.setattr("flows.site.processes._YOUNG_S", 0.0)
    stop = threading.Event()

    def end_it_once(one: ServerProcess) -> None:
        assert one.process is not None
        first = one.process
        first.kill()
        first.wait()

        def stop_after_the_second() -> None:
            wait_for(lambda: one.process is not first and one.alive(), within_s=60, what="a second process")
            stop.set()

        threading.Thread(target=stop_after_the_second).start()

    run_site([service], ready=end_it_once, stop=stop)
    assert not service.alive()


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a process that its parent died"
)
def test_a_site_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    site = subprocess.Popen(
        [sys.executable, "-c", SITE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert site.stdout is not None
    service = psutil.Process(int(site.stdout.readline()))
    site.kill()
    site.wait()
    gone, _ = psutil.wait_procs([service], timeout=60)
    assert gone
