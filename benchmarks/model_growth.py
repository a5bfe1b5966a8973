"""How sampling grows: seconds against samples, series, context, horizon and model size; bytes against samples.

    python benchmarks/model_growth.py [--quick] [--save] [--threads 2]

One knob moves at a time, from one series of Kronos-small with 400 bars of context, 112 of horizon and 8 paths.
Each point is a process of its own. --save also draws the curves, which takes matplotlib.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, peak_mb, results_page, run_json, write_results
from benchmarks.model_sampling import forecast_ours

BASE = {"preset": "small", "samples": 8, "series": 1, "context": 400, "horizon": 112}
KNOBS: dict[str, tuple] = {
    "samples": (1, 2, 4, 8, 16, 30, 64, 128),
    "series": (1, 2, 4, 8, 16),
    "context": (25, 50, 100, 200, 400),
    "horizon": (7, 14, 28, 56, 112),
    "preset": ("tiny", "mini", "small", "base"),
}
QUICK_BASE = {"preset": "tiny", "samples": 4, "series": 1, "context": 50, "horizon": 8}
QUICK_KNOBS: dict[str, tuple] = {"samples": (1, 8), "horizon": (4, 8)}
RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few points of a tiny model")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/, with a picture")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point, arguments.threads)))
        return
    knobs, base = (QUICK_KNOBS, QUICK_BASE) if arguments.quick else (KNOBS, BASE)
    points = [point(base, knob, value, arguments) for knob, values in knobs.items() for value in values]
    report = {
        "theme": "model_growth",
        **machine(),
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
        "threads": arguments.threads,
        "base": base,
        "cases": points,
    }
    if arguments.save:
        write_results(report, table(report))
        draw(report, results_page(report).with_suffix(".png"))
    print(json.dumps(report))


def point(base: dict, knob: str, value: object, arguments: argparse.Namespace) -> dict:
    """One measured point, in a process of its own."""
    options = ["--point", json.dumps(base | {knob: value}), "--threads", str(arguments.threads)]
    found = {"case": knob, "at": value, **run_json("benchmarks.model_growth", *options)}
    print(found, file=sys.stderr)
    return found


def measure(settings: dict, threads: int) -> dict:
    """Median seconds of a forecast, and the highest resident set over that of the imports."""
    import torch

    torch.set_num_threads(threads)
    runs = [forecast_ours(False, **settings) for _ in range(RUNS)]
    return {
        "ours": float(f"{statistics.median(run['value'] for run in runs):.4g}"),
        "unit": "s",
        "ours_peak_increase_mb": round(peak_mb() - runs[0]["imports_mb"], 1),
    }


def table(report: dict) -> list[str]:
    """The report as markdown."""
    base = ", ".join(f"{knob} {value}" for knob, value in report["base"].items())
    lines = [
        f"# How sampling grows on {report['hardware']}",
        "",
        f"torch {report['versions']['torch']}, {report['threads']} threads, a process per point, median of {RUNS}. "
        f"One knob moves at a time from: {base}.",
        "",
        "| knob | at | s | peak MB over imports |",
        "|---|---:|---:|---:|",
    ]
    return lines + [
        f"| {case['case']} | {case['at']} | {case['ours']:,} | {case['ours_peak_increase_mb']:,} |"
        for case in report["cases"]
    ]


def draw(report: dict, path: Path) -> None:
    """A panel per knob, and one for memory, beside the JSON."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves = [(knob, "ours", "seconds") for knob in dict.fromkeys(case["case"] for case in report["cases"])]
    curves.append(("samples", "ours_peak_increase_mb", "peak MB over imports"))
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (knob, measure_name, label) in zip(axes.flat, curves, strict=False):
        cases = [case for case in report["cases"] if case["case"] == knob]
        axis.plot([case["at"] for case in cases], [case[measure_name] for case in cases], "o-")
        axis.set(xlabel=knob, ylabel=label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    base = ", ".join(f"{knob} {value}" for knob, value in report["base"].items())
    figure.suptitle(f"Sampling on {report['hardware']}, one knob at a time from: {base}", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
