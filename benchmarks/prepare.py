"""Preparing 45,149 hourly candles for training: build_dataset against DataFrames in pickles.

    python benchmarks/prepare.py [--cases build_45k_seconds,build_45k_disk] [--quick] [--save]

Both sides start from the same seeded candles in memory and end with 31,240/6,695/6,695 windows of 400+120 on
disk. Each run is a process of its own; peak memory is its highest resident set, inputs and imports included,
and the increase is over the resident set after the imports. The full peer takes about 13 minutes and 9 GB.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, peak_mb, run_json, write_results

CASES = {"build_45k_seconds": ("seconds", "s"), "build_45k_disk": ("disk_mb", "MB")}
FULL_ROWS, QUICK_ROWS = 45_149, 2_000
LOOKBACK, HORIZON = 400, 120
ORDER = ("ours", "ours", "peer", "ours", "ours", "ours")
PEER = "DataFrames in pickles (first DOGE project)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} candles; ends within a minute")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=None, help="number of candles")
    arguments = parser.parse_args()
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else FULL_ROWS)
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    if arguments.side:
        print(json.dumps(run_side(arguments.side, rows)))
        return
    report = compare(cases, rows)
    if arguments.save:
        save(report)
    print(json.dumps(report))


def compare(cases: list[str], rows: int) -> dict:
    """Both sides in turn, medians of each."""
    runs: dict[str, list[dict]] = {"ours": [], "peer": []}
    for side in ORDER:
        runs[side].append(run_json("benchmarks.prepare", "--side", side, "--rows", str(rows)))
        print(side, runs[side][-1], file=sys.stderr)
    if any(run["windows"] != runs["peer"][0]["windows"] for run in runs["ours"]):
        raise SystemExit("the two sides made different windows; the comparison means nothing")
    ours, peer = (
        {
            name: statistics.median(run[name] for run in runs[side])
            for name in runs[side][0]
            if name != "windows"
        }
        for side in ("ours", "peer")
    )
    return {
        "theme": "prepare",
        **machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("numpy", "polars", "pandas")},
        "rows": rows,
        "windows": runs["peer"][0]["windows"],
        "runs": {side: len(runs[side]) for side in runs},
        "cases": [describe(case, ours, peer) for case in cases],
    }


def describe(case: str, ours: dict, peer: dict) -> dict:
    measure, unit = CASES[case]
    return {
        "case": case,
        "ours": round(ours[measure], 4),
        "peer": round(peer[measure], 4),
        "peer_name": PEER,
        "unit": unit,
        "ratio": round(peer[measure] / ours[measure], 1),
        "ours_peak_mb": round(ours["peak_mb"], 1),
        "peer_peak_mb": round(peer["peak_mb"], 1),
        "ours_peak_increase_mb": round(ours["peak_mb"] - ours["imports_mb"], 1),
        "peer_peak_increase_mb": round(peer["peak_mb"] - peer["imports_mb"], 1),
    }


def run_side(side: str, rows: int) -> dict:
    """One measured run in this process, into a folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="prepare-") as name:
        folder = Path(name)
        windows, imports_mb, seconds = (run_ours if side == "ours" else run_peer)(rows, folder)
        peak = peak_mb()  # before the disk is walked
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "seconds": seconds,
        "disk_mb": size / 1e6,
        "peak_mb": peak,
        "imports_mb": imports_mb,
        "windows": windows,
    }


def run_ours(rows: int, folder: Path) -> tuple[list[int], float, float]:
    import polars as pl

    from kronos_model.clipping import clipped_shares
    from kronos_model.features import calendar_stamps, fit_state
    from storage.dataset import DatasetConfig, build_dataset
    from storage.schema import SeriesKey

    imports_mb = peak_mb()
    columns = synthetic(rows)
    frame = pl.DataFrame(columns).with_columns(
        pl.col("open_time").cast(pl.Datetime("ms", "UTC")),
        quote_volume=pl.lit(None, pl.Float64),  # estimated, as by the peer
    )
    config = DatasetConfig(lookback=LOOKBACK, horizon=HORIZON, purge=False)
    began = time.perf_counter()
    built = build_dataset(
        {SeriesKey.parse("um:DOGEUSDT", "1h"): frame},
        config,
        folder,
        stamp=calendar_stamps,
        fit=lambda train: fit_state(config.normaliser, train),
        clipped=clipped_shares,
    )
    return list(built.windows.values()), imports_mb, time.perf_counter() - began


def run_peer(rows: int, folder: Path) -> tuple[list[int], float, float]:
    import pandas as pd

    from benchmarks.peers.pandas_pickle import prepare

    imports_mb = peak_mb()
    columns = synthetic(rows)
    frame = pd.DataFrame({"timestamps": pd.to_datetime(columns.pop("open_time"), unit="ms"), **columns})
    began = time.perf_counter()
    windows = prepare(frame, folder, lookback=LOOKBACK, horizon=HORIZON)
    return list(windows.values()), imports_mb, time.perf_counter() - began


def synthetic(rows: int) -> dict:
    """A seeded random walk of hourly candles as numpy columns."""
    import numpy as np

    rng = np.random.default_rng(45_149)
    close = 0.1 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[0.1], close[:-1]])
    return {
        "open_time": 1_594_371_600_000 + 3_600_000 * np.arange(rows, dtype=np.int64),
        "open": opened,
        "high": np.maximum(opened, close) * (1 + rng.exponential(0.002, rows)),
        "low": np.minimum(opened, close) * (1 - rng.uniform(0, 0.005, rows)),
        "close": close,
        "volume": rng.lognormal(12, 1, rows),
    }


def save(report: dict) -> None:
    """The report as JSON and as a table, named by theme, hardware and month."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    train, validation, test = report["windows"]
    lines = [
        f"# Preparing {report['rows']:,} candles on {report['hardware']}",
        "",
        f"{train:,}/{validation:,}/{test:,} windows of {LOOKBACK}+{HORIZON}; {versions}; a process per run, "
        f"median of {report['runs']['ours']} runs of ours and {report['runs']['peer']} of the peer ({PEER}).",
        "Ours stores each row once and normalises a window when it is read; the peer stores every window.",
        "",
        "| case | ours | peer | unit | ratio | peak MB ours (over imports) | peak MB peer (over imports) |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for case in report["cases"]:
        lines.append(
            f"| {case['case']} | {case['ours']:,} | {case['peer']:,} | {case['unit']} | {case['ratio']:,} "
            f"| {case['ours_peak_mb']:,} ({case['ours_peak_increase_mb']:,}) "
            f"| {case['peer_peak_mb']:,} ({case['peer_peak_increase_mb']:,}) |"
        )
    write_results(report, lines)


if __name__ == "__main__":
    main()
