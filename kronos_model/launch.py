"""Several processes of this machine train a job: `python -m kronos_model.launch JOBDIR --processes N`.

torchrun starts, watches and ends them. This adds what its command line lacks: the sentence and the exit code of the
process that failed instead of a report of its own, an end with the parent, and a meeting that no other machine can
reach (torchrun's store listens on every address): in files of the job, and on the loopback.

Exit codes are those of kronos_model.train; 128 + N where signal N ended a process.
"""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed import run as _run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from kronos_model.errors import ModelError
from kronos_model.jobs import read_job
from kronos_model.lock import locked
from kronos_model.train import LOST, job_parser

__all__ = ["main"]

_WATCH_S = 1.0  # between two looks at the parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = job_parser("python -m kronos_model.launch")
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many train together")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    folder = options.job / ".torchrun"
    try:
        read_job(options.job)
        with locked(options.job / ".torchrun.lock", what=f"the training job {options.job}"):
            shutil.rmtree(folder, ignore_errors=True)  # of a killed process
            folder.mkdir()
            try:
                return _launch(options.job, options.processes, folder)
            finally:
                shutil.rmtree(folder)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _launch(job: Path, processes: int, folder: Path) -> int:
    """Train in that many processes, whose files are in the folder; returns the exit code."""
    _stay_on_the_loopback()
    # torchrun would give each a single thread
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    torchrun: Any = _run  # untyped
    told = [
        "--nnodes=1",
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
        "--local-addr=127.0.0.1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={folder / 'rendezvous'}",
        f"--rdzv-id={job.name}",
        f"--log-dir={folder / 'logs'}",
        "--redirects=3",
    ]
    train = ["kronos_model.train", str(job), "--meeting", str(folder / "meeting")]
    try:
        torchrun.run(torchrun.parse_args([*told, "-m", *train, "--parent", str(os.getpid())]))
    except ChildFailedError as failed:
        return _explain(failed.failures, processes, folder)
    except Exception as error:  # whatever a signal became on its way; the rest is raised again
        if (stopped := _signal_behind(error)) is None:
            raise
        return 128 + stopped
    return 0


def _explain(failures: Mapping[int, ProcessFailure], processes: int, folder: Path) -> int:
    """Pass on what all processes said, last the one that failed first; returns its exit code."""
    # one that lost another is not what went wrong
    rank = min(failures, key=lambda rank: (failures[rank].exitcode == LOST, failures[rank].timestamp, rank))
    said = {int(path.parent.name): path.read_text(errors="replace") for path in folder.rglob("stderr.log")}
    for other in sorted(said, key=lambda other: (other == rank, other)):
        sys.stderr.write(said[other])
    code = failures[rank].exitcode
    if code < 0:
        sys.stderr.write(f"process {rank + 1} of {processes} was ended by {signal.Signals(-code).name}\n")
    return code if code >= 0 else 128 - code


def _signal_behind(error: BaseException | None) -> int | None:
    """The signal that ended torchrun: it raises SignalException wherever it is then, even inside a `finally`."""
    while error is not None:
        if isinstance(error, SignalException):
            return error.sigval
        error = error.__context__
    return None


def _stay_on_the_loopback() -> None:
    """Tell torchrun to open no store, and gloo and nccl to listen on this machine's loopback alone."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)


def _end_with(parent: int) -> None:
    """End this process, and so all others, as SIGTERM does, once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
