"""Several processes of one machine as the nightly starts them: unreachable from outside, and never left behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from kronos_model import launch
from kronos_model.distributed import local_processes
from kronos_model.errors import ModelError
from kronos_model.launch import main
from kronos_model.train import run_job
from tests.support.training import ROOT, line_count, make_ground, read_metrics

STEPS = 150


def test_the_processes_listen_on_the_loopback_alone_and_end_with_the_one_that_wanted_them(
    tmp_path: Path,
) -> None:
    job = make_ground(tmp_path, rows=900).job(
        "orphan", "tokenizer", epochs=1, steps_per_epoch=STEPS, validation_windows=16
    )
    command = [sys.executable, "-m", "kronos_model.launch", str(job), "--processes", "2", "--parent"]
    program = f"import os, subprocess; subprocess.run([*{command!r}, str(os.getpid())])"
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while line_count(job) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 3
    heard = [
        one.laddr.ip for process in family for one in process.net_connections() if one.status == "LISTEN"
    ]
    assert set(heard) == {"127.0.0.1"}
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
    assert not (job / "result.json").exists()
    assert not (job / ".torchrun").exists()
    done = len(read_metrics(job, phase="train"))
    assert 9 <= done < STEPS
    assert run_job(job)["steps"] == STEPS, "and one process goes on"


def _failed(folder: Path, codes: dict[int, int]) -> dict[int, ProcessFailure]:
    """Processes that ended with these codes, each after a sentence of its own."""
    for rank in codes:
        (folder / "logs" / "0" / str(rank)).mkdir(parents=True)
        (folder / "logs" / "0" / str(rank) / "stderr.log").write_text(f"said by {rank}\n")
    return {
        rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
        for rank, code in codes.items()
    }


@pytest.mark.parametrize(
    ("codes", "code", "last"),
    [
        ({0: 2, 1: 2}, 2, "said by 0"),
        ({0: 3, 1: 1}, 1, "said by 1"),  # what went wrong, not who noticed
        ({0: 3, 1: -9}, 137, "process 2 of 2 was ended by SIGKILL"),
        ({0: 143, 1: 143}, 143, "said by 0"),
    ],
)
def test_the_one_that_went_wrong_has_the_last_word(
    codes: dict[int, int], code: int, last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch._explain(_failed(tmp_path, codes), 2, tmp_path) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == last
    assert {"said by 0", "said by 1"} <= set(said)


def test_a_job_that_is_not_there_starts_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--processes", "2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "job.json" in said


def test_there_are_as_many_processes_as_asked_for_or_devices_but_never_more_than_windows_in_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [local_processes(asked, batch_size=8) for asked in (None, 1, 3, 99)] == [1, 1, 3, 8]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [local_processes(asked, batch_size=8) for asked in (None, 2)] == [4, 2]
    with pytest.raises(
        ModelError, match="expected at most 4 training processes, one per CUDA device, found 5"
    ):
        local_processes(5, batch_size=8)
