"""What orchestration costs of a night: `kronos run` against the same functions without Prefect and MLflow.

    python benchmarks/overhead.py [--cases cached_night,overhead_10_min,commands] [--before CHECKOUT] [--quick] [--save]

`cached_night` runs recipe demo again when nothing is new. `overhead_10_min` runs one short night after another,
each a process of its own with another seed, with its embedded Prefect server and its MLflow store, and without
either (benchmarks/peers/bare_night.py), over homes that have had their first night, which makes both databases;
the difference is what a night pays once. A longer night tells the share of its training that the process above it
spends in calls to both, which is charged for all of a ten-minute night as if the training, a process of its own,
waited for them.
`commands` times commands that only read, each a process of its own, over a lake of 24 series of 30,000 hourly
candles, and with `--before` the same ones of an earlier checkout of this program in turn.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import ROOT, machine, write_results
from exchange.replay import synthetic_market
from storage.lake import Lake
from storage.ledger import Source
from storage.schema import SeriesKey

CASES = ("cached_night", "overhead_10_min", "commands")
CACHED_TARGET_S = 15.0
OVERHEAD_TARGET = 0.05
NIGHT_S = 600.0
COMMAND_TARGETS_S = {  # commands that only read, and how long they may take
    "--help": 0.4,
    "recipes": 0.8,
    "candles": 1.5,
    "scores": 2.0,
    "verify --sample 0": 6.0,
    "doctor": 4.0,
}
SERIES, CANDLES, START_MS = 24, 30_000, 1_577_836_800_000
SHORT = [
    "dataset.lookback=24",
    "dataset.horizon=4",
    "tokenizer.epochs=1",
    "tokenizer.steps_per_epoch=10",
    "predictor.epochs=1",
    "predictor.steps_per_epoch=10",
    "evaluation.origins=30",
    "evaluation.samples=4",
    "evaluation.postprocess_origins=10",
    "gate.coverage_low=0",
    "gate.coverage_high=1",
]
LONG = [
    *SHORT,
    "tokenizer.epochs=6",
    "tokenizer.steps_per_epoch=100",
    "predictor.epochs=6",
    "predictor.steps_per_epoch=100",
]
_FOREIGN = ("PREFECT_", "MLFLOW_", "KRONOS_", "HF_")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="time the commands of this one, too")
    parser.add_argument("--quick", action="store_true", help="each thing once; ends within two minutes")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--counted", nargs="+", metavar="HOME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.counted:
        print(json.dumps(counted(arguments.counted[0], arguments.counted[1:])))
        return
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    times = 1 if arguments.quick else 3
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        made: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {
            "cached_night": cached_night,
            "overhead_10_min": overhead,
            "commands": partial(commands, before=arguments.before),
        }
        report = {
            "theme": "overhead",
            **machine(),
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in ("prefect", "mlflow", "torch")},
            "runs": times,
            "cases": [row for case in cases for row in made[case](Path(scratch), times)],
        }
    if arguments.save:
        save(report)
    print(json.dumps(report))


def cached_night(scratch: Path, times: int) -> list[dict[str, Any]]:
    """`kronos run --recipe demo` with these settings, again, when nothing is new."""
    home = scratch / "cached"
    orchestrated(home, SHORT)
    seconds = [orchestrated(home, SHORT) for _ in range(times)]
    row = {
        "case": "cached_night",
        "ours": round(statistics.median(seconds), 2),
        "peer": CACHED_TARGET_S,
        "peer_name": "target, at most",
        "unit": "s",
        "ratio": round(CACHED_TARGET_S / statistics.median(seconds), 2),
        "ours_peak_mb": None,
        "peer_peak_mb": None,
    }
    return [row]


def overhead(scratch: Path, times: int) -> list[dict[str, Any]]:
    """Both kinds of short nights in turn; then the share of a longer one that is spent in calls."""
    ours, bare = [], []
    first = orchestrated(scratch / "ours", SHORT)
    bare_night(scratch / "bare", SHORT)
    for number in range(times):
        settings = [*SHORT, f"seed={number + 1}"]
        ours.append(orchestrated(scratch / "ours", settings))
        bare.append(bare_night(scratch / "bare", settings))
        print("short night: ours", ours[-1], "bare", bare[-1], file=sys.stderr)
    calls = _json("benchmarks/overhead.py", "--counted", str(scratch / "counted"), *LONG)
    print("long night:", calls, file=sys.stderr)
    once = statistics.median(ours) - statistics.median(bare)
    share = calls["call_s"] / calls["training_s"]
    total = once + share * NIGHT_S
    row = {
        "case": "overhead_10_min",
        "ours": round(total / NIGHT_S, 4),
        "peer": OVERHEAD_TARGET,
        "peer_name": "target, at most",
        "unit": "share of a night of 10 minutes",
        "ratio": round(OVERHEAD_TARGET * NIGHT_S / total, 2),
        "ours_peak_mb": None,
        "peer_peak_mb": None,
        "first_night_s": round(first, 2),
        "short_night_s": round(statistics.median(ours), 2),
        "bare_night_s": round(statistics.median(bare), 2),
        "once_s": round(once, 2),
        "share_of_training": round(share, 4),
        **calls,
    }
    return [row]


def commands(scratch: Path, times: int, *, before: Path | None) -> list[dict[str, Any]]:
    """Each command and, where there is a checkout to compare with, its predecessor in turn."""
    home = scratch / "lake"
    _fill_lake(home / "lake")
    rows = []
    for typed, target in COMMAND_TARGETS_S.items():
        words = ("-m", "flows.cli", "--home", str(home), *typed.split())
        ours, theirs = [], []
        for _ in range(times):
            ours.append(_timed(*words, may_refuse=True))
            theirs.append(_timed(*words, root=before, may_refuse=True) if before else target)
        print(typed, ours, theirs, file=sys.stderr)
        rows.append(
            {
                "case": f"kronos {typed}",
                "ours": round(statistics.median(ours), 2),
                "peer": round(statistics.median(theirs), 2),
                "peer_name": "before" if before else "target, at most",
                "unit": "s",
                "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
                "ours_peak_mb": None,
                "peer_peak_mb": None,
                "target": target,
            }
        )
    return rows


def _fill_lake(lake: Path) -> None:
    keys = [SeriesKey.parse(f"um:{letter}USDT", "1h") for letter in ascii_uppercase[:SERIES]]
    for key, candles in synthetic_market(keys, start_ms=START_MS, count=CANDLES, seed=0).items():
        Lake(lake).upsert(key, candles, source=Source(kind="import", detail="a synthetic market"))


def orchestrated(home: Path, settings: list[str]) -> float:
    """Seconds of `kronos run`, from the start of its process to its end."""
    chosen = [f"--set={one}" for one in settings]
    return _timed("-m", "flows.cli", "--home", str(home), "run", "--recipe", "demo", *chosen)


def bare_night(home: Path, settings: list[str]) -> float:
    """Seconds of the same night without Prefect and MLflow."""
    return _timed("-m", "benchmarks.peers.bare_night", str(home), *settings)


def counted(home: str, settings: list[str]) -> dict[str, float]:
    """A night in this process; the seconds that training took, and of them those inside calls to Prefect and MLflow."""
    from flows.environment import open_home, prepare_environment

    prepare_environment(open_home(home), verbose=False)
    from flows.config import parse_assignments
    from flows.nightly import nightly
    from tasks import train
    from tasks.tracking.tail import MetricTail

    spent = {"call_s": 0.0, "training_s": 0.0, "calls": 0}

    def clocked(function: Any, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - began
                spent["calls"] += name == "call_s"

        return call

    tail: Any = MetricTail
    tail.send = clocked(tail.send, "call_s")
    train.update_progress_artifact = clocked(train.update_progress_artifact, "call_s")  # type: ignore[assignment]
    train._run_child = clocked(train._run_child, "training_s")  # type: ignore[assignment]
    nightly("demo", settings=parse_assignments(settings))
    return {name: round(value, 3) for name, value in spent.items()}


def _environment(root: Path = ROOT) -> dict[str, str]:
    """Nothing of this process's settings; the packages of that checkout first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"PYTHONPATH": str(root)}


def _timed(*arguments: str, root: Path = ROOT, may_refuse: bool = False) -> float:
    """Seconds of a process. One that `may_refuse`, as where there is no champion or no exchange, ends with 0 or 1."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=_environment(root), capture_output=True, text=True
    )
    if done.returncode not in ((0, 1) if may_refuse else (0,)) or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began


def _json(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def save(report: dict[str, Any]) -> None:
    """The report as JSON and as a table."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    lines = [
        f"# What orchestration costs of a night, on {report['hardware']}",
        "",
        f"Recipe demo with little training, every run a process of its own with everything that starts and ends with "
        f"it; {versions}; median of {report['runs']}.",
        "",
        "| case | ours | peer | which is | unit | peer / ours |",
        "|---|---:|---:|---|---|---:|",
    ]
    for case in report["cases"]:
        lines.append(
            f"| {case['case']} | {case['ours']:,} | {case['peer']:,} | {case['peer_name']} | {case['unit']} | "
            f"{case['ratio']:,} |"
        )
    for case in report["cases"]:
        if "once_s" in case:
            lines += [
                "",
                f"A short night takes {case['short_night_s']} s with Prefect and MLflow and {case['bare_night_s']} s "
                f"without: {case['once_s']} s once a night, imports, the start of the embedded server and the "
                f"registered model included. The first night of a home, which makes both databases, takes "
                f"{case['first_night_s']} s. Of {case['training_s']} s of training, {case['call_s']} s passed in "
                f"{case['calls']} calls to both ({100 * case['share_of_training']:.1f} %), beside a training process "
                "that does not wait for them; the projection charges them in full.",
            ]
    write_results(report, lines)


if __name__ == "__main__":
    main()
