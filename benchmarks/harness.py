"""What the benchmarks share: peak memory, runs in processes of their own, results on disk."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["ROOT", "Case", "joined", "machine", "peak_mb", "results_page", "run_json", "write_results"]

# A parent of measured processes stays on the standard library: a child's peak memory starts at its own.
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. Each side measures itself in a process of its own and imports what it needs there."""

    title: str
    unit: str
    peer_name: str
    ours: Callable[[bool], dict]
    """Told whether to be quick, returns the measured `value`, and `imports_mb` if it imported after the start."""
    peer: Callable[[bool], dict]
    """The same for the other side."""
    order: tuple[str, ...] = ("ours", "peer", "ours", "peer", "ours", "peer")
    """Which side runs when; the dearer side may run less often."""
    larger_is_better: bool = False
    gpu: bool = False
    """Left out where there is no GPU; the peak is then the GPU's."""


def peak_mb() -> float:
    """Highest resident set of this process so far, in MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run_json(module: str, *arguments: str) -> dict:
    """Run a module in a process of its own; the JSON object that it prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
    """The hardware of a report."""
    return {"hardware": f"{os.cpu_count()}cpu", "processor": platform.processor() or platform.machine()}


def results_page(report: dict) -> Path:
    """Where the markdown of a report is, by theme, hardware and month; its JSON is beside it."""
    return RESULTS / f"{report['theme']}_{report['hardware']}_{datetime.now(UTC):%Y%m}.md"


def joined(report: dict, *, same: Sequence[str]) -> dict:
    """The report with the cases that were kept before, where these of its entries are the same as they were then."""
    page = results_page(report).with_suffix(".json")
    before = json.loads(page.read_text(encoding="utf-8")) if page.exists() else {"cases": []}
    kept = before["cases"] if all(before.get(key) == report[key] for key in same) else []
    cases = {case["case"]: case for case in (*kept, *report["cases"])}
    return report | {"cases": list(cases.values())}


def write_results(report: dict, lines: list[str]) -> None:
    """The report as JSON and as markdown."""
    page = results_page(report)
    RESULTS.mkdir(exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
