"""What a site takes of disk and memory: candles, windows, models, servers and databases.

    python benchmarks/sizing.py [--klines DIR] [--parts files,models,site] [--save]

Files are written by the program's own writers and counted; 1h candles come from files such as um_DOGEUSDT_1h.parquet
in DIR, others are synthetic. The site is a `kronos up` on free ports that runs three short nights; memory is the
proportional set size, in which pages that processes share are counted once (Linux).
"""

import argparse
import importlib.metadata
import json
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, write_results
from exchange.replay import synthetic_market
from kronos_model.checkpoint import TrainState, save_checkpoint
from kronos_model.config import PRESETS
from kronos_model.fit import make_optimizer
from kronos_model.jobs import StageConfig
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer
from storage.candle_files import read_folder
from storage.dataset import DatasetConfig
from storage.interval import Interval
from storage.lake import Lake
from storage.ledger import Source
from storage.schema import SeriesKey
from tests.support.datasets import build
from tests.support.nights import quick_settings, write_klines
from tests.support.prefect_site import Site, prefect_site

YEAR_MS = 365.25 * 86_400_000
START_MS = 1_704_067_200_000  # 2024-01-01
MINUTES = 60 * 24 * 90
LOOKBACK, HORIZON = 400, 120
STEPS = (12, 12, 212)  # of each stage in the three nights; what the third adds is the price of steps
WHO = {  # by a word of the command; the first that fits
    "mlflow": "MLflow's server",
    "server": "Prefect's server",
    "serve": "the forecast service",
    "worker": "a worker",
}

Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--klines", type=Path, default=None, help="a folder of 1h candles; synthetic without it"
    )
    parser.add_argument("--parts", default="files,models,site", help="which to measure, separated by commas")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    arguments = parser.parse_args()
    measures: dict[str, Callable[[Path], Iterator[Row]]] = {
        "files": lambda folder: files(folder, arguments.klines),
        "models": models,
        "site": site,
    }
    rows: list[Row] = []
    for part in arguments.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            for row in measures[part](Path(folder)):
                print(row, file=sys.stderr)
                rows.append(row)
    packages = ("polars", "torch", "prefect", "mlflow")
    report = {
        "theme": "sizing",
        **machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "cases": rows,
    }
    if arguments.save:
        save(report)
    print(json.dumps(report))


def files(folder: Path, klines: Path | None) -> Iterator[Row]:
    """Candles in the lake, and a dataset of them."""
    for interval, count in (("1h", 5 * 8766), ("1m", MINUTES)):
        key = SeriesKey.parse("um:DOGEUSDT", interval)
        candles = dict(synthetic_market([key], start_ms=START_MS, count=count, seed=1))[key]
        size = _in_lake(folder / "synthetic", key, candles)
        yield _per_year(key.interval, size, f"every column, synthetic, {count:,} candles")
        if interval == "1h":
            config = DatasetConfig(lookback=LOOKBACK, horizon=HORIZON)
            built = build({key.name: candles}, config, folder / "datasets")
            yield _row("dataset", _bytes(built.path) / count, "bytes per candle", f"{count:,} candles")
    if klines:
        hours = Interval("1h")
        for key, candles in read_folder(klines, hours).items():
            size = _in_lake(folder / "real", key, candles)
            columns = sum(candles[name].null_count() < len(candles) for name in candles.columns)
            what = f"{key.name}, real, {len(candles):,} candles, {columns} of {candles.width} columns filled"
            yield _per_year(hours, size, what)


def _in_lake(root: Path, key: SeriesKey, candles: pl.DataFrame) -> float:
    """Bytes per candle."""
    lake = Lake(root)
    lake.upsert(key, candles, source=Source("import", "benchmark"))
    return sum(path.stat().st_size for path in lake.files(key).values()) / len(candles)


def _per_year(interval: Interval, size: float, what: str) -> Row:
    a_year = YEAR_MS / (interval.milliseconds or 1)
    return _row(
        f"lake, {interval}", size * a_year / 1e6, "MB per year", f"{size:.1f} bytes per candle; {what}"
    )


def models(folder: Path) -> Iterator[Row]:
    """Weights and checkpoints of each preset."""
    for name in ("mini", "small", "base"):
        preset = PRESETS[name]
        for part, model in (
            ("tokenizer", KronosTokenizer(preset.tokenizer)),
            ("predictor", Kronos(preset.predictor)),
        ):
            model.save_pretrained(folder / name / part)
            yield _row(f"{name}, {part}", _bytes(folder / name / part) / 1e6, "MB")
            optimizer = make_optimizer(model, StageConfig())
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            state = TrainState(model=model, optimizer=optimizer, generator=torch.Generator())
            save_checkpoint(folder / "checkpoint", state, job="sizing")
            yield _row(
                f"{name}, {part}, checkpoint",
                _bytes(folder / "checkpoint") / 1e6,
                "MB",
                "float32, with both moments of AdamW",
            )


def site(folder: Path) -> Iterator[Row]:
    """Memory of a running site, and what three nights add to its databases."""
    write_klines(folder / "klines")
    (folder / "site").mkdir()
    with prefect_site(folder / "site", notify="http://127.0.0.1:9") as running:
        yield from _memory(running, "before the first night")
        before = _databases(running)
        grown: list[dict[str, float]] = []
        most = 0.0
        for number, steps in enumerate(STEPS):
            settings = quick_settings(
                folder / "klines",
                seed=number,
                **{f"{stage}.steps_per_epoch": steps for stage in ("tokenizer", "predictor")},
            )
            most = max(most, _night(running, {"recipe": "demo", "settings": settings}))
            after = _databases(running)
            grown.append({name: after[name] - before[name] for name in after})
            before = after
        yield from _memory(running, "after three nights")
        yield _row("memory, a worker with a night that runs", most, "MB", "the most seen, demo, tiny model")
        few, many = grown[1], grown[2]
        for name in few:
            yield _row(f"{name}, per night", few[name] / 1e6, "MB", f"demo, {STEPS[1]} steps a stage")
        more = 2 * (STEPS[2] - STEPS[1]) / 1000
        for name in ("prefect.db", "mlflow.db"):
            yield _row(f"{name}, per 1,000 steps", (many[name] - few[name]) / 1e6 / more, "MB")


def _memory(running: Site, when: str) -> Iterator[Row]:
    assert running.up is not None
    top = psutil.Process(running.up.pid)
    yield _row("memory, kronos up itself", top.memory_full_info().pss / 1e6, "MB", when)
    for child in top.children():
        yield _row(f"memory, {_who(child.cmdline())}", _pss(child), "MB", when)


def _who(words: list[str]) -> str:
    return next(
        (who for word, who in WHO.items() if any(one.endswith(word) for one in words)), " ".join(words)
    )


def _pss(process: psutil.Process) -> float:
    """MB of a process and of all that it has started; of one that is gone, nothing."""
    size = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            size += one.memory_full_info().pss / 1e6
    return size


def _night(running: Site, parameters: dict[str, object]) -> float:
    """Run a night to its end; the most memory of the worker with all that runs under it."""
    assert running.up is not None
    worker = next(
        one for one in psutil.Process(running.up.pid).children() if _who(one.cmdline()) == WHO["worker"]
    )
    run, most = running.run("nightly", parameters), 0.0
    while (state := running.get(f"flow_runs/{run}")["state"])["type"] not in (
        "COMPLETED",
        "FAILED",
        "CRASHED",
        "CANCELLED",
    ):
        most = max(most, _pss(worker))
        time.sleep(0.5)
    if state["type"] != "COMPLETED":
        raise SystemExit(f"a night ended as {state['name']}: {state.get('message')}")
    return most


def _databases(running: Site) -> dict[str, float]:
    """Bytes of both databases as SQLite counts them, write-ahead log included, and of MLflow's files."""
    home = running.home
    found = {}
    for path in (home.root / "prefect" / "prefect.db", home.root / "mlflow.db"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            pages, size = (
                database.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size")
            )
            free = database.execute("PRAGMA freelist_count").fetchone()[0]
        found[path.name] = float((pages - free) * size)
    return found | {"mlartifacts": float(_bytes(home.mlartifacts))}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _row(case: str, value: float, unit: str, what: str = "") -> Row:
    return {"case": case, "ours": round(value, 3), "unit": unit, "what": what}


def save(report: dict) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# What a site takes, on {report['hardware']}",
        "",
        f"{versions}. Memory is the proportional set size.",
        "",
        "| what | takes | unit | measured on |",
        "|---|---:|---|---|",
        *(f"| {row['case']} | {row['ours']:,} | {row['unit']} | {row['what']} |" for row in report["cases"]),
    ]
    write_results(report, lines)


if __name__ == "__main__":
    main()
