"""Small training jobs on seeded candles, and processes that run them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kronos_model.config import PRESETS
from kronos_model.hub import ModelPair, scratch_pair
from kronos_model.jobs import Job, Reference, Stage, StageConfig, write_job
from storage.dataset import BuiltDataset, DatasetConfig
from tests.support.datasets import build, make_candles

ROOT = Path(__file__).resolve().parents[2]
TIMINGS = ("ms_per_step", "bars_per_s", "tokens_per_s", "mfu", "seconds")


@dataclass(frozen=True)
class Ground:
    """A small dataset of two series and a tiny pair of models."""

    root: Path
    dataset: BuiltDataset
    pair: ModelPair

    def job(self, name: str, stage: Stage, **settings: Any) -> Path:
        """The directory of a new job; settings are those of StageConfig."""
        config = StageConfig(**{"batch_size": 8, "learning_rate": 1e-3, "checkpoint_steps": 4} | settings)
        predictor = Reference(path=str(self.pair.predictor), digest=self.pair.predictor_digest)
        job = Job(
            stage=stage,
            dataset=Reference(path=str(self.dataset.path), digest=self.dataset.digest),
            tokenizer=Reference(path=str(self.pair.tokenizer), digest=self.pair.tokenizer_digest),
            predictor=predictor if stage == "predictor" else None,
            config=config,
            seed=7,
            threads=1,
        )
        write_job(self.root / name, job)
        return self.root / name


def make_ground(root: Path, *, rows: int = 300, dropout: float = 0.0) -> Ground:
    """Two series of so many rows, and the tiny preset from scratch, with dropout of this share."""
    tiny = PRESETS["tiny"]
    ffn_attn_resid = {f"{part}_dropout_p": dropout for part in ("ffn", "attn", "resid")}
    preset = replace(
        tiny,
        tokenizer=replace(tiny.tokenizer, **ffn_attn_resid),
        predictor=replace(tiny.predictor, token_dropout_p=dropout, **ffn_attn_resid),
    )
    candles = {"um:DOGEUSDT": make_candles(rows, seed=1), "um:BTCUSDT": make_candles(rows, seed=2)}
    dataset = build(candles, DatasetConfig(lookback=16, horizon=4), root / "datasets")
    return Ground(root=root, dataset=dataset, pair=scratch_pair(preset, root / "pair", 0))


def start(job: Path, *options: str) -> subprocess.Popen[str]:
    """`python -m kronos_model.train job`, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kronos_model.train", str(job), *options],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_metrics(job: Path, *, phase: str | None = None) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    path = job / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
    return [line for line in kept if phase in (None, line["phase"])]


def line_count(job: Path) -> int:
    path = job / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Return once the condition holds or the process has ended."""
    while not condition():
        try:
            process.wait(0.002)
        except subprocess.TimeoutExpired:
            continue
        return
