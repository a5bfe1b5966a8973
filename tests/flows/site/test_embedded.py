"""The Prefect server of a single command."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from flows.site.embedded import begin_embedded
from storage.layout import Home

BEGIN = """
import sys, time
from flows.site.embedded import begin_embedded
from flows.environment import open_home, prepare_environment
home = open_home(sys.argv[1])
prepare_environment(home, verbose=False)
server = begin_embedded(home)
from prefect.settings import PREFECT_API_URL
print(server.process.pid, PREFECT_API_URL.value() == server.url + "/api", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_a_configured_server_is_used_and_none_is_started(prefect_api: None, tmp_path: Path) -> None:
    assert PREFECT_API_URL.value()
    assert begin_embedded(Home.at(tmp_path)) is None
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_the_server_of_a_command_ends_when_the_command(tmp_path: Path, killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(tmp_path), "60" if killed else "0"],
        env={name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        pid, pointed = command.stdout.readline().split()
        server = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
        if killed:
            command.kill()
    assert pointed == "True"
    if server is not None:
        server.wait(20)
