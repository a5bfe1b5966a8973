"""What our deliberate differences from upstream change: fine-token cross-entropy of a model trained here.

    python benchmarks/upstream_differences.py --candles ../shared/data/um_DOGEUSDT_1h.parquet [--quick] [--save]
    python benchmarks/upstream_differences.py --candles ../shared/data/um_DOGEUSDT_1h.parquet --floor

Trains the tiny preset from scratch (both stages) on candles, and reads the same held-out windows in four ways, in
nats per fine token given the true coarse one. Over all positions: `causal`, our validation, and `non_causal`,
upstream's, whose fine token attends to the future. Over the forecast's positions, one query at a time as when
sampling: `trained`, at its true position, and `upstream`, without any position. Errors are of paired differences
over windows that do not overlap. With --floor nothing is trained: how wide a window's closes are taken to be where
prices are a market's own, or times a factor.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, write_results

ROWS, LOOKBACK, HORIZON = 20_000, 64, 16
STAGES = {"tokenizer": (2, 200, 2e-3), "predictor": (4, 250, 2e-3)}  # epochs, steps of each, learning rate
QUICK = {"tokenizer": (1, 20, 2e-3), "predictor": (1, 20, 2e-3)}
SEEDS = (0, 1)
FACTORS = (1.0, 1e-2, 1e-4, 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candles", type=Path, required=True, help="Parquet file of hourly candles")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, one seed; the numbers mean nothing"
    )
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--floor", action="store_true", help="the widths of windows alone, in a second")
    arguments = parser.parse_args()
    if arguments.floor:
        print(json.dumps(widths(arguments.candles)))
        return
    report = {
        "theme": "upstream_differences",
        **machine(),
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
        "candles": arguments.candles.stem,
        "windows": f"{LOOKBACK}+{HORIZON}, the last {ROWS:,} rows",
        "quick": arguments.quick,
        "cases": [
            case
            for seed in SEEDS[: 1 if arguments.quick else None]
            for case in measure(arguments.candles, seed, QUICK if arguments.quick else STAGES)
        ],
    }
    if arguments.save:
        write_results(report, table(report))
    print(json.dumps(report))


def measure(candles: Path, seed: int, stages: dict) -> list[dict]:
    """Train a pair and compare; two cases."""
    import numpy as np
    import torch

    from kronos_model.hub import load_pair
    from kronos_model.tokens import normalised
    from kronos_model.windows import WindowDataset

    with tempfile.TemporaryDirectory(prefix="differences-") as name:
        folder = Path(name)
        built, (first, last) = prepare(candles, folder)
        pair = train_pair(built, folder, seed, stages)
        tokenizer, predictor = load_pair(*pair)
        dataset = WindowDataset.open(built.path)
        starts = np.arange(0, dataset.count("test"), LOOKBACK + HORIZON)
        readings: dict[str, list] = {}
        for chosen in np.array_split(starts, max(1, len(starts) // 32)):
            windows = dataset.batch("test", chosen)
            with torch.inference_mode():
                tokens = torch.stack(
                    tokenizer.encode_halves(normalised(dataset, windows, torch.device("cpu"))), dim=-1
                )
                for reading, losses in read(predictor, tokens, windows.stamps).items():
                    readings.setdefault(reading, []).append(losses)
    found = {reading: torch.cat(parts) for reading, parts in readings.items()}
    about = {"seed": seed, "held_out": f"{first:%Y-%m-%d} to {last:%Y-%m-%d}", "windows": len(starts)}
    return [
        about | compare("s2_decode, one query", "trained", "upstream", found),
        about | compare("validation, all positions", "causal", "non_causal", found),
    ]


def widths(candles: Path) -> list[dict]:
    """Median width of the closes of windows by either floor, in % of the last close, at each factor."""
    import numpy as np
    import polars as pl
    import torch

    from kronos_model.features import CLOSE
    from kronos_model.normalise import Normaliser
    from storage.past import features_of

    rows = features_of(pl.read_parquet(candles).tail(ROWS))
    windows = torch.from_numpy(
        np.stack([rows[at : at + LOOKBACK] for at in range(0, ROWS - LOOKBACK, LOOKBACK)])
    )

    def width(floor: str, factor: float) -> float:
        scaled = windows * factor
        scale = Normaliser(floor=floor).measure(scaled, [""] * len(scaled)).scale[:, 0, CLOSE]
        return round(100 * (scale / scaled[:, -1, CLOSE]).median().item(), 4)

    return [
        {"factor": factor, "ours": width("relative", factor), "peer": width("upstream", factor)}
        for factor in FACTORS
    ]


def prepare(candles: Path, folder: Path):
    """A dataset of the last rows, and the range of its test split's windows."""
    import polars as pl

    from kronos_model.features import calendar_stamps, fit_state
    from storage.dataset import DatasetConfig, build_dataset
    from storage.schema import SeriesKey

    frame = pl.read_parquet(candles).tail(ROWS)
    frame = frame.with_columns(pl.col("open_time").cast(pl.Datetime("ms", "UTC")))
    config = DatasetConfig(lookback=LOOKBACK, horizon=HORIZON)
    market, symbol, interval = candles.stem.split("_")
    built = build_dataset(
        {SeriesKey.parse(f"{market}:{symbol}", interval): frame},
        config,
        folder / "datasets",
        stamp=calendar_stamps,
        fit=lambda train: fit_state(config.normaliser, train),
    )
    from kronos_model.windows import WindowDataset

    dataset = WindowDataset.open(built.path)
    times = dataset.batch("test", [0, dataset.count("test") - 1]).open_time
    return built, (
        datetime.fromtimestamp(times[0, 0] / 1000, UTC),
        datetime.fromtimestamp(times[1, -1] / 1000, UTC),
    )


def train_pair(built, folder: Path, seed: int, stages: dict) -> tuple[Path, Path]:
    """Folders of a tokenizer and of a predictor trained on its tokens."""
    from kronos_model.config import PRESETS
    from kronos_model.files import model_digest
    from kronos_model.hub import scratch_pair
    from kronos_model.jobs import Job, Reference, StageConfig, write_job
    from kronos_model.train import run_job

    pair = scratch_pair(PRESETS["tiny"], folder / "pair", seed)
    dataset = Reference(path=str(built.path), digest=built.digest)
    tokenizer, predictor = pair.tokenizer, pair.predictor
    for stage in ("tokenizer", "predictor"):
        epochs, steps, rate = stages[stage]
        job = Job(
            stage=stage,
            dataset=dataset,
            tokenizer=Reference(path=str(tokenizer), digest=model_digest(tokenizer)),
            predictor=Reference(path=str(predictor), digest=model_digest(predictor))
            if stage == "predictor"
            else None,
            config=StageConfig(
                epochs=epochs,
                steps_per_epoch=steps,
                learning_rate=rate,
                batch_size=16,
                validation_windows=128,
                checkpoint_steps=10_000,
            ),
            seed=seed,
        )
        write_job(folder / stage, job)
        result = run_job(folder / stage)
        print(stage, seed, result["initial_validation_loss"], result["best_validation_loss"], file=sys.stderr)
        tokenizer, predictor = (
            (folder / stage / "best", predictor)
            if stage == "tokenizer"
            else (tokenizer, folder / stage / "best")
        )
    return tokenizer, predictor


def read(predictor, tokens, stamps) -> dict:
    """Mean cross-entropy per window (B,) of the fine tokens, in each way."""
    import torch

    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    _, hidden = predictor.decode_s1(inputs[..., 0], inputs[..., 1], stamps[:, :-1])
    coarse, fine = targets.unbind(dim=-1)

    def one_by_one(mode: str):
        positions = range(LOOKBACK - 1, fine.shape[1])
        logits = [
            predictor.decode_s2(hidden[:, : at + 1], coarse[:, at : at + 1], s2_decode=mode)
            for at in positions
        ]
        return _cross_entropy(torch.cat(logits, dim=1), fine[:, LOOKBACK - 1 :])

    return {
        "causal": _cross_entropy(predictor.decode_s2(hidden, coarse), fine),
        "non_causal": _cross_entropy(predictor.decode_s2(hidden, coarse, s2_decode="upstream"), fine),
        "trained": one_by_one("trained"),
        "upstream": one_by_one("upstream"),
    }


def _cross_entropy(logits, targets):
    from torch.nn import functional as F

    return (
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)
    )


def compare(case: str, ours: str, theirs: str, found: dict) -> dict:
    """Means of two readings and their paired difference."""
    difference = found[theirs] - found[ours]
    return {
        "case": case,
        "ours_name": ours,
        "ours": round(found[ours].mean().item(), 4),
        "peer_name": theirs,
        "peer": round(found[theirs].mean().item(), 4),
        "unit": "nats per fine token",
        "difference": round(difference.mean().item(), 4),
        "standard_error": round(difference.std().item() / len(difference) ** 0.5, 4),
    }


def table(report: dict) -> list[str]:
    """The report as markdown."""
    lines = [
        f"# Fine-token cross-entropy, {report['candles']}, tiny preset trained from scratch",
        "",
        f"Windows of {report['windows']}; nats per fine token given the true coarse one; held-out windows that do "
        "not overlap.",
        "",
        "| case | seed | held out | windows | ours | upstream | difference (standard error) |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for case in report["cases"]:
        lines.append(
            f"| {case['case']} | {case['seed']} | {case['held_out']} | {case['windows']} "
            f"| {case['ours']} ({case['ours_name']}) | {case['peer']} ({case['peer_name']}) "
            f"| {case['difference']:+} ({case['standard_error']}) |"
        )
    return lines


if __name__ == "__main__":
    main()
