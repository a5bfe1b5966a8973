"""A night that is told to stop, by a person or by the system."""

import time
from pathlib import Path

import psutil
import pytest

from flows import nightly as nightly_module
from tests.support.nights import quick_settings, write_klines
from tests.support.terminal import Terminal, finish, holdings, start

STOPPED = "Stopped; the same command resumes where it was."


def _arguments(root: Path, **others: object) -> list[str]:
    write_klines(root / "klines")
    settings = quick_settings(root / "klines", **others)
    return ["run", *(f"--set={name}={value}" for name, value in settings.items())]


def test_ctrl_c_is_one_sentence_and_a_killed_run(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: None
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nightly_module, "train_challenger", stop)
    outcome = terminal(*_arguments(tmp_path))
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, STOPPED)
    assert "Traceback" not in outcome.out + outcome.err
    assert "KILLED" in holdings(terminal.home).values()


def test_sigterm_while_training_ends_every_process_in_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = start(home, *_arguments(tmp_path, **{"tokenizer.epochs": 500}))
    deadline = time.monotonic() + 120
    while not list(home.glob("jobs/*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    commands = [" ".join(child.cmdline()) for child in children]
    assert any("kronos_model.train" in command for command in commands)
    assert any("prefect.server" in command for command in commands)
    process.terminate()
    process.wait(40)
    _, left = psutil.wait_procs(children, timeout=5)
    for one in left:
        one.kill()
    assert left == [], "a process is left behind"
    outcome = finish(process)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (143, STOPPED)
    assert "Traceback" not in outcome.out + outcome.err
    assert "KILLED" in holdings(home).values()
    assert list(home.glob("jobs/*/checkpoint")), "the job is resumable"
