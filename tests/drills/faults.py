"""What goes wrong in a night of the drill: set up before it, done in its midst, put right after it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from exchange.replay import Fault as ExchangeFault
from tests.support.loopback_hub import Fault as HubFault

if TYPE_CHECKING:
    from tests.drills.site import DrillSite

__all__ = ["FAULTS", "Trouble"]

_POLL_S = 0.02
_MINUTE_S = 60.0


@dataclass
class Trouble:
    """One fault of one night. `meanwhile` runs beside the night's process and returns whether it struck."""

    what: str
    environment: dict[str, str] = field(default_factory=dict)
    meanwhile: Callable[[psutil.Process], bool] | None = None
    fails: bool = False  # no night gets through this
    twice: bool = False  # another night is started beside it
    worker: bool = False  # a worker runs the night from its deployment; `meanwhile` gets the worker's process
    settings: dict[str, object] = field(default_factory=dict)


def _nothing(site: DrillSite, dice: random.Random) -> Trouble:
    return Trouble("nothing")


def _exchange_storm(site: DrillSite, dice: random.Random) -> Trouble:
    seed = dice.randrange(1000)
    site.exchange.faults = [
        ExchangeFault(kind, "*/klines", probability=0.25, seed=seed + number)
        for number, kind in enumerate(("429", "500", "503", "truncated"))
    ]
    return Trouble("the exchange answers 429, 5xx and half pages")


def _exchange_down(site: DrillSite, dice: random.Random) -> Trouble:
    site.exchange.faults = [ExchangeFault("503")]
    return Trouble("the exchange answers nothing but 503", fails=True)


def _hub_storm(site: DrillSite, dice: random.Random) -> Trouble:
    statuses = [dice.choice((500, 502, 503, 504)) for _ in range(2)]
    site.hub.faults = [HubFault(status=status, skip=dice.randrange(12)) for status in statuses]
    return Trouble("the Hub answers some requests with 5xx")


def _hub_down(site: DrillSite, dice: random.Random) -> Trouble:
    site.hub.faults = [HubFault(path="/commit/", status=503, times=10_000)]
    return Trouble("the Hub takes no commit: 503", fails=True)


def _mlflow_away(site: DrillSite, dice: random.Random) -> Trouble:
    site.kill_mlflow()
    return Trouble("the MLflow server is down", fails=True)


def _mlflow_lost(site: DrillSite, dice: random.Random) -> Trouble:
    def strike(night: psutil.Process) -> bool:
        if not _training(night):
            return False
        site.kill_mlflow()
        return True

    return Trouble("the MLflow server is killed while a night trains", meanwhile=strike)


def _mlflow_minute(site: DrillSite, dice: random.Random) -> Trouble:
    def strike(night: psutil.Process) -> bool:
        if (child := _training(night)) is None:
            return False
        site.kill_mlflow()
        try:
            _numbers(child)
            child.suspend()  # so few steps would be over within the minute
            time.sleep(_MINUTE_S)
            site.begin_mlflow()
            child.resume()
        except psutil.NoSuchProcess:
            return False
        return True

    longer = {"tokenizer.epochs": 20, "tokenizer.patience": 1_000}
    return Trouble("the MLflow server is down for a minute of a training", meanwhile=strike, settings=longer)


def _numbers(training: psutil.Process) -> None:
    """Wait until it has told some; NoSuchProcess where it ends before."""
    command = training.cmdline()
    told = Path(command[command.index("kronos_model.train") + 1]) / "metrics.jsonl"
    while not told.exists() or '"train"' not in told.read_text():
        if not training.is_running() or training.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(training.pid)
        time.sleep(_POLL_S)


def _mlflow_pause(site: DrillSite, dice: random.Random) -> Trouble:
    def strike(night: psutil.Process) -> bool:
        if not _training(night):
            return False
        site.signal_mlflow(signal.SIGSTOP)
        time.sleep(5)
        site.signal_mlflow(signal.SIGCONT)
        return True

    return Trouble("the MLflow server hangs for 5 s while a night trains", meanwhile=strike)


def _kill_child(site: DrillSite, dice: random.Random) -> Trouble:
    def strike(night: psutil.Process) -> bool:
        child = _training(night)
        time.sleep(dice.uniform(0, 2))
        if child is None or not child.is_running():
            return False
        child.kill()
        return True

    return Trouble("SIGKILL of the training process", meanwhile=strike)


def _kill_while(what: str, seen: Callable[[DrillSite, psutil.Process], Callable[[], object]]) -> _Maker:
    def make(site: DrillSite, dice: random.Random) -> Trouble:
        def strike(night: psutil.Process) -> bool:
            happens = seen(site, night)
            while night.is_running() and night.status() != psutil.STATUS_ZOMBIE:
                if happens():
                    night.kill()
                    return True
                time.sleep(_POLL_S)
            return False

        return Trouble(f"SIGKILL of the night while it {what}", meanwhile=strike)

    return make


def _downloads(site: DrillSite, night: psutil.Process) -> Callable[[], object]:
    site.exchange.forget_requests()
    return lambda: any("klines" in one.path for one in site.exchange.requests)


def _judges(site: DrillSite, night: psutil.Process) -> Callable[[], object]:
    before = set(site.home.jobs.glob("*evaluate-*"))
    return lambda: set(site.home.jobs.glob("*evaluate-*")) - before


def _publishes(site: DrillSite, night: psutil.Process) -> Callable[[], object]:
    before = site.hub.count("POST", "/commit/")
    return lambda: site.hub.count("POST", "/commit/") > before


def _trains(site: DrillSite, night: psutil.Process) -> Callable[[], object]:
    return lambda: _child(night)


def _kill_worker(site: DrillSite, dice: random.Random) -> Trouble:
    """`kronos worker` and Prefect's die; the night goes on without them."""

    def strike(worker: psutil.Process) -> bool:
        return _training(worker) is not None and _kill((worker, *worker.children()))

    return Trouble("SIGKILL of the worker while its night trains", meanwhile=strike, worker=True)


def _kill_everything(site: DrillSite, dice: random.Random) -> Trouble:
    def strike(worker: psutil.Process) -> bool:
        return _training(worker) is not None and _kill((worker, *worker.children(recursive=True)))

    what = "SIGKILL of the worker, its night and its training at once"
    return Trouble(what, meanwhile=strike, worker=True)


def _kill(processes: Iterable[psutil.Process]) -> bool:
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return True


def _disk_full(site: DrillSite, dice: random.Random) -> Trouble:
    kept = dice.randrange(2, 90)
    return Trouble("the disk is full", {"DRILL_DISK_FULL_AFTER": str(kept)})


def _clock_wrong(site: DrillSite, dice: random.Random) -> Trouble:
    ahead = dice.choice((-7_200, -600, 600, 7_200))
    direction = "ahead" if ahead > 0 else "behind"
    return Trouble(
        f"the local clock is {abs(ahead) // 60} min {direction}", {"DRILL_CLOCK_AHEAD_S": str(ahead)}
    )


def _two_at_once(site: DrillSite, dice: random.Random) -> Trouble:
    return Trouble("two nights are started at once", twice=True)


def _child(night: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        for child in night.children(recursive=True):
            with suppress(psutil.Error):
                if "kronos_model.train" in child.cmdline():
                    return child
    return None


def _training(night: psutil.Process) -> psutil.Process | None:
    """The training process, once there is one; None when the night ends before."""
    while night.is_running() and night.status() != psutil.STATUS_ZOMBIE:
        if found := _child(night):
            return found
        time.sleep(_POLL_S)
    return None


_Maker = Callable[["DrillSite", random.Random], Trouble]

FAULTS: dict[str, _Maker] = {
    "nothing": _nothing,
    "exchange-storm": _exchange_storm,
    "exchange-down": _exchange_down,
    "hub-storm": _hub_storm,
    "hub-down": _hub_down,
    "mlflow-away": _mlflow_away,
    "mlflow-lost": _mlflow_lost,
    "mlflow-minute": _mlflow_minute,
    "mlflow-pause": _mlflow_pause,
    "kill-child": _kill_child,
    "kill-download": _kill_while("downloads", _downloads),
    "kill-training": _kill_while("trains", _trains),
    "kill-judging": _kill_while("judges", _judges),
    "kill-publishing": _kill_while("publishes", _publishes),
    "kill-worker": _kill_worker,
    "kill-everything": _kill_everything,
    "disk-full": _disk_full,
    "clock-wrong": _clock_wrong,
    "two-at-once": _two_at_once,
}
