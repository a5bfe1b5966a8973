"""The model against upstream's package: sampling, training steps, the first batch.

    python benchmarks/model.py [--cases sample_s1,sample_s30] [--quick] [--save] [--threads 2]

Both sides have the same seeded weights. Each run is a process of its own, the sides in turn; peak memory is the
process's highest resident set, imports included (on a GPU: the most that was allocated there). Needs torch,
numpy, scipy, safetensors and huggingface_hub; the peer also upstream's package (`model`, pandas, einops, tqdm).
A case whose name ends in _gpu says so and is left out where there is no GPU.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Case, joined, machine, peak_mb, run_json, write_results
from benchmarks.model_sampling import CASES as SAMPLING
from benchmarks.model_training import CASES as TRAINING

CASES: Mapping[str, Case] = {**SAMPLING, **TRAINING}
PACKAGES = ("torch", "numpy", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small inputs, one run; ends within a minute")
    parser.add_argument(
        "--save", action="store_true", help="also write benchmarks/results/, over these cases alone"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, for both sides")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    if arguments.side:
        print(
            json.dumps(run_side(arguments.side, cases[0], threads=arguments.threads, quick=arguments.quick))
        )
        return
    report = {
        "theme": "model",
        **machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "threads": arguments.threads,
        "cases": [compare(name, threads=arguments.threads, quick=arguments.quick) for name in cases],
    }
    if arguments.save:
        kept = joined(report, same=("processor", "versions", "threads"))
        kept["cases"].sort(key=lambda case: list(CASES).index(case["case"]))
        write_results(kept, table(kept))
    print(json.dumps(report))


def run_side(side: str, name: str, *, threads: int, quick: bool) -> dict:
    """One measured run in this process: the value, the peak and whatever else the case tells."""
    import torch

    case = CASES[name]
    if case.gpu and not torch.cuda.is_available():
        return {"skipped": "no GPU"}
    torch.set_num_threads(threads)
    measured = {"imports_mb": peak_mb(), **(case.ours if side == "ours" else case.peer)(quick)}
    peak = torch.cuda.max_memory_allocated() / 1e6 if case.gpu else peak_mb()
    return {"peak_mb": peak, "hardware": torch.cuda.get_device_name() if case.gpu else "cpu", **measured}


def compare(name: str, *, threads: int, quick: bool) -> dict:
    """Both sides in turn, medians of each."""
    case = CASES[name]
    runs: dict[str, list[dict]] = {"ours": [], "peer": []}
    for side in ("ours", "peer") if quick else case.order:
        options = ["--cases", name, "--side", side, "--threads", str(threads), *["--quick"] * quick]
        found = run_json("benchmarks.model", *options)
        print(name, side, found, file=sys.stderr)
        if "skipped" in found:
            return {"case": name, **found}
        runs[side].append(found)
    ours, peer = (
        {key: statistics.median(run[key] for run in runs[side]) for key in ("value", "peak_mb", "imports_mb")}
        for side in ("ours", "peer")
    )
    ratio = ours["value"] / peer["value"] if case.larger_is_better else peer["value"] / ours["value"]
    return {
        "case": name,
        "title": case.title,
        "ours": float(f"{ours['value']:.4g}"),
        "peer": float(f"{peer['value']:.4g}"),
        "peer_name": case.peer_name,
        "unit": case.unit,
        "ratio": round(ratio, 2),
        "ours_peak_mb": round(ours["peak_mb"], 1),
        "peer_peak_mb": round(peer["peak_mb"], 1),
        "ours_peak_increase_mb": round(ours["peak_mb"] - ours["imports_mb"], 1),
        "peer_peak_increase_mb": round(peer["peak_mb"] - peer["imports_mb"], 1),
        "runs": {side: len(runs[side]) for side in runs},
        "quick": quick,
        "hardware": runs["ours"][0]["hardware"],
        **{
            key: {side: runs[side][0].get(key) for side in runs}
            for key in ("batch", "mfu")
            if key in runs["ours"][0]
        },
    }


def table(report: dict) -> list[str]:
    """The report as markdown."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    lines = [
        f"# The model on {report['hardware']}",
        "",
        f"{versions}; {report['threads']} threads; a process per run, sides in turn, medians.",
        "",
        "| case | what | ours | upstream | unit | ratio | runs "
        "| peak MB (over imports) | upstream's peak MB (over imports) |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for case in report["cases"]:
        if "skipped" in case:
            lines.append(f"| {case['case']} | left out: {case['skipped']} | | | | | | | |")
            continue
        lines.append(
            f"| {case['case']} | {case['title']} | {case['ours']:,} | {case['peer']:,} | {case['unit']} "
            f"| {case['ratio']:,} | {case['runs']['ours']}/{case['runs']['peer']} "
            f"| {case['ours_peak_mb']:,} ({case['ours_peak_increase_mb']:,}) "
            f"| {case['peer_peak_mb']:,} ({case['peer_peak_increase_mb']:,}) |"
        )
    return lines


if __name__ == "__main__":
    main()
