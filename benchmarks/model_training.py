"""Training cases of benchmarks/model.py: optimizer steps of both stages, and a dataset's first batch.

Upstream's side is the loop of its finetune scripts: encode the batch without gradients, forward, backward, clip,
AdamW, all in float32. Ours trains on tokens that were encoded before. Both have the same weights, windows and
dropout; CPU cases are float32 on both sides but for step2_*_bf16, where ours autocasts.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness import Case, peak_mb
from benchmarks.model_sampling import pair

__all__ = ["CASES", "step_one_ours", "step_two_ours"]

BATCH, LENGTH = 8, 512
QUICK_BATCH, QUICK_LENGTH = 2, 128
GPU_BATCHES = (16, 32, 64, 128, 256)
GPU_QUICK_BATCHES = (8,)
WARMUPS, STEPS = 1, 5
WINDOWS, LOOKBACK, HORIZON = 31_240, 400, 120
QUICK_WINDOWS = 500
UPSTREAM = "upstream's loop"


def windows(batch: int, device: str):
    """Seeded normalised bars (B, L, 6) and stamps (B, L, 5), one bar longer than what is read."""
    import torch

    draw = torch.Generator().manual_seed(3)
    bars = (torch.randn(batch, LENGTH + 1, 6, generator=draw).cumsum(dim=1) / 3).clamp(-5, 5)
    hours = torch.arange(LENGTH + 1)
    columns = [hours * 0, hours % 24, hours // 24 % 7, hours // 24 % 28 + 1, hours * 0 + 5]
    return bars.to(device), torch.stack(columns, dim=-1).expand(batch, -1, -1).to(device)


def upstream_pair(preset: str):
    """Upstream's tokenizer and predictor with the weights of ours."""
    import model as upstream

    from kronos_model.config import PRESETS

    configs = PRESETS[preset].tokenizer, PRESETS[preset].predictor
    theirs = upstream.KronosTokenizer(**configs[0].to_dict()), upstream.Kronos(**configs[1].to_dict())
    for one, other in zip(pair(preset), theirs, strict=True):
        other.load_state_dict(one.state_dict())
    return theirs


def step_two_ours(
    preset: str, batch: int, length: int, device: str, *, bfloat16: bool
) -> Callable[[], object]:
    """A step of the predictor as kronos_model.fit takes it."""
    import torch
    from torch.nn import functional as F

    from kronos_model.fit import make_optimizer
    from kronos_model.jobs import StageConfig

    tokenizer, predictor = pair(preset)
    bars, stamps = (part[:, : length + 1] for part in windows(batch, device))
    with torch.no_grad():
        tokens = torch.stack(tokenizer.to(device).encode_halves(bars), dim=-1)
    predictor.to(device).train()
    optimizer = make_optimizer(predictor, StageConfig(learning_rate=4e-5))
    generator = torch.Generator(device).manual_seed(0)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            logits = predictor(tokens[:, :-1, 0], tokens[:, :-1, 1], stamps[:, :-1], generator=generator)
        parts = zip(logits, tokens[:, 1:].unbind(dim=-1), strict=True)
        loss = sum(F.cross_entropy(part.float().flatten(0, 1), ids.flatten()) for part, ids in parts) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 3.0)
        optimizer.step()
        return loss.item()

    return step


def step_two_peer(preset: str, batch: int, length: int, device: str, **_: bool) -> Callable[[], object]:
    """A step of upstream's finetune/train_predictor.py."""
    import torch

    tokenizer, predictor = upstream_pair(preset)
    bars, stamps = (part[:, : length + 1] for part in windows(batch, device))
    tokenizer.to(device).eval()
    predictor.to(device).train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=4e-5, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> object:
        with torch.no_grad():
            s1, s2 = tokenizer.encode(bars, half=True)
        logits = predictor(s1[:, :-1], s2[:, :-1], stamps[:, :-1])
        loss, _, _ = predictor.head.compute_loss(*logits, s1[:, 1:], s2[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), max_norm=3.0)
        optimizer.step()
        return loss.item()

    return step


def step_one_ours(
    preset: str, batch: int, length: int, device: str, *, bfloat16: bool
) -> Callable[[], object]:
    """A step of the tokenizer as kronos_model.fit takes it."""
    import torch

    from kronos_model.fit import make_optimizer
    from kronos_model.jobs import StageConfig

    tokenizer, _ = pair(preset)
    optimizer = make_optimizer(tokenizer.to(device), StageConfig(learning_rate=2e-4))

    def loss(x):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            (coarse, full), quantiser, *_ = tokenizer(x)
        return coarse, full, quantiser

    return _tokenizer_step(tokenizer, optimizer, loss, windows(batch, device)[0][:, :length])


def step_one_peer(preset: str, batch: int, length: int, device: str, **_: bool) -> Callable[[], object]:
    """A step of upstream's finetune/train_tokenizer.py, one batch at a time."""
    import torch

    tokenizer, _ = upstream_pair(preset)
    optimizer = torch.optim.AdamW(tokenizer.to(device).parameters(), lr=2e-4, weight_decay=0.1)

    def loss(x):
        (coarse, full), quantiser, *_ = tokenizer(x)
        return coarse, full, quantiser

    return _tokenizer_step(tokenizer, optimizer, loss, windows(batch, device)[0][:, :length])


def _tokenizer_step(tokenizer, optimizer, parts: Callable, x) -> Callable[[], object]:
    import torch
    from torch.nn import functional as F

    tokenizer.train()

    def step() -> object:
        optimizer.zero_grad()
        coarse, full, quantiser = parts(x)
        loss = (F.mse_loss(coarse, x) + F.mse_loss(full, x) + quantiser) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), max_norm=2.0)
        optimizer.step()
        return loss.item()

    return step


def seconds_per_step(
    quick: bool, *, make: Callable[..., Callable[[], object]], preset: str, bfloat16: bool = False
) -> dict:
    """Median seconds of a step on the CPU."""
    import statistics

    imports_mb = peak_mb()
    batch, length = (QUICK_BATCH, QUICK_LENGTH) if quick else (BATCH, LENGTH)
    step = make(preset, batch, length, "cpu", bfloat16=bfloat16)
    times = [_timed(step) for _ in range(WARMUPS + (1 if quick else STEPS))]
    return {"value": statistics.median(times[WARMUPS:]), "imports_mb": imports_mb}


def windows_per_second(
    quick: bool, *, make: Callable[..., Callable[[], object]], preset: str, bfloat16: bool
) -> dict:
    """Windows trained per second on the GPU at the best batch size, with its MFU and peak memory."""
    import torch

    from kronos_model.accounting import known_peak, training_flops
    from kronos_model.config import PRESETS

    tokenizer = make in (step_one_ours, step_one_peer)
    config = PRESETS[preset].tokenizer if tokenizer else PRESETS[preset].predictor
    best: dict = {"value": 0.0}
    for batch in GPU_QUICK_BATCHES if quick else GPU_BATCHES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = make(preset, batch, LENGTH, "cuda", bfloat16=bfloat16)
            times = [_timed(step) for _ in range(3 + STEPS)][3:]
        except torch.OutOfMemoryError:
            break
        rate = batch / sorted(times)[len(times) // 2]
        if rate > best["value"]:
            peak = known_peak(torch.cuda.get_device_name(), bfloat16=bfloat16)
            mfu = rate * LENGTH * training_flops(config, LENGTH) / peak if peak else None
            gpu_mb = torch.cuda.max_memory_allocated() / 1e6
            best = {"value": rate, "batch": batch, "mfu": mfu, "peak_mb": gpu_mb}
    return best | {"imports_mb": 0.0}


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()  # ends with a number on the CPU, hence with the device's work
    return time.perf_counter() - began


def open_ours(quick: bool) -> dict:
    """Seconds until the first batch of tokens and stamps, from a dataset and its tokens on disk."""
    import numpy as np
    import torch

    from kronos_model.config import PRESETS
    from kronos_model.tokenizer import KronosTokenizer
    from kronos_model.tokens import token_source
    from kronos_model.windows import WindowDataset

    count = QUICK_WINDOWS if quick else WINDOWS
    with tempfile.TemporaryDirectory(prefix="open-") as name:
        folder = Path(name)
        write_dataset(folder, count)
        tokenizer = KronosTokenizer(PRESETS["tiny"].tokenizer)  # not asked: the tokens are there
        imports_mb = peak_mb()
        began = time.perf_counter()
        dataset = WindowDataset.open(folder)
        tokens = token_source(
            dataset,
            tokenizer,
            "train",
            folder=folder,
            digest="d",
            draws=count,
            budget_mb=8192,
            device=torch.device("cpu"),
        )
        chosen = np.random.default_rng(0).permutation(count)[:32]
        assert tokens.batch(chosen).shape == (32, LOOKBACK + HORIZON, 2)
        assert dataset.batch("train", chosen).stamps.shape == (32, LOOKBACK + HORIZON, 5)
        return {"value": time.perf_counter() - began, "imports_mb": imports_mb}


def open_peer(quick: bool) -> dict:
    """Seconds until the first batch of the first DOGE project: the pickled windows are read as a whole."""
    import pickle

    import numpy as np
    import pandas as pd

    count = QUICK_WINDOWS if quick else WINDOWS
    columns = [
        "open",
        "high",
        "low",
        "close",
        "volume",
        "amount",
        "minute",
        "hour",
        "weekday",
        "day",
        "month",
    ]
    series = np.random.default_rng(0).normal(size=(count + LOOKBACK + HORIZON, len(columns)))
    with tempfile.TemporaryDirectory(prefix="open-") as name:
        path = Path(name) / "train.pkl"
        frame = pd.DataFrame(series, columns=columns)
        made = [frame.iloc[at : at + LOOKBACK + HORIZON].copy() for at in range(count)]
        path.write_bytes(pickle.dumps(made, protocol=pickle.HIGHEST_PROTOCOL))
        del made
        imports_mb = peak_mb()
        began = time.perf_counter()
        with path.open("rb") as file:
            read = pickle.load(file)  # the peer's own file, written a moment ago
        batch = np.stack([one.to_numpy(np.float32) for one in read[:32]])
        assert batch.shape == (32, LOOKBACK + HORIZON, len(columns))
        return {"value": time.perf_counter() - began, "imports_mb": imports_mb}


def write_dataset(folder: Path, count: int) -> None:
    """A dataset of one series with so many train windows, and their tokens, as storage and tokens write them."""
    import json

    import numpy as np

    rows = count + LOOKBACK + HORIZON - 1
    draw = np.random.default_rng(0)
    entry = {"key": "um:DOGEUSDT", "slug": "um-DOGEUSDT", "rows": rows}
    (folder / "series" / entry["slug"]).mkdir(parents=True)
    (folder / "windows").mkdir()
    (folder / "tokens" / "d").mkdir(parents=True)
    arrays = {
        "features": draw.normal(size=(rows, 6)).astype(np.float32),
        "stamps": np.ones((rows, 5), np.int8),
        "open_time": 3_600_000 * np.arange(rows),
    }
    for name, values in arrays.items():
        np.save(folder / "series" / entry["slug"] / f"{name}.npy", values)
    starts = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.int32)
    counts = {"train": count, "validation": 0, "test": 0}
    for split, number in counts.items():
        np.save(folder / "windows" / f"{split}.npy", starts[:number])
    tokens = draw.integers(0, 1024, (count, LOOKBACK + HORIZON, 2)).astype(np.uint16)
    np.save(folder / "tokens" / "d" / "train.npy", tokens)
    manifest = {
        "version": 1,
        "digest": "d",
        "interval": "1h",
        "interval_ms": 3_600_000,
        "lookback": LOOKBACK,
        "horizon": HORIZON,
        "normaliser": {"kind": "window_zscore", "clip": 5.0, "floor": "relative", "state": {}},
        "series": [entry],
        "windows": counts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _cpu(title: str, ours: Callable, peer: Callable, preset: str, *, bfloat16: bool = False) -> Case:
    return Case(
        title=f"{title}, {BATCH} windows of {LENGTH}, Kronos-{preset}{', ours in bf16' * bfloat16}",
        unit="s/step",
        peer_name=UPSTREAM,
        ours=partial(seconds_per_step, make=ours, preset=preset, bfloat16=bfloat16),
        peer=partial(seconds_per_step, make=peer, preset=preset),
    )


def _gpu(title: str, ours: Callable, peer: Callable, preset: str, *, bfloat16: bool) -> Case:
    return Case(
        title=f"{title}, windows of {LENGTH}, Kronos-{preset}, best batch size{', ours in bf16' * bfloat16}",
        unit="windows/s",
        peer_name=UPSTREAM,
        ours=partial(windows_per_second, make=ours, preset=preset, bfloat16=bfloat16),
        peer=partial(windows_per_second, make=peer, preset=preset, bfloat16=False),
        larger_is_better=True,
        gpu=True,
    )


_TWO, _ONE = (step_two_ours, step_two_peer), (step_one_ours, step_one_peer)
CASES: dict[str, Case] = {
    "step2_small": _cpu("stage-2 step", *_TWO, "small"),
    "step2_small_bf16": _cpu("stage-2 step", *_TWO, "small", bfloat16=True),
    "step2_mini": _cpu("stage-2 step", *_TWO, "mini"),
    "step2_mini_bf16": _cpu("stage-2 step", *_TWO, "mini", bfloat16=True),
    "step1": _cpu("stage-1 step", *_ONE, "small"),
    "step1_bf16": _cpu("stage-1 step", *_ONE, "small", bfloat16=True),
    "open_dataset": Case(
        title=f"first batch of {WINDOWS:,} windows of {LOOKBACK}+{HORIZON} on disk",
        unit="s",
        peer_name="DataFrames in pickles (first DOGE project)",
        ours=open_ours,
        peer=open_peer,
        order=("ours", "peer", "ours", "ours"),
    ),
    "step2_small_gpu": _gpu("stage 2", *_TWO, "small", bfloat16=True),
    "step2_base_gpu": _gpu("stage 2", *_TWO, "base", bfloat16=True),
    "step2_mini_gpu": _gpu("stage 2", *_TWO, "mini", bfloat16=True),
    "step1_gpu": _gpu("stage 1", *_ONE, "small", bfloat16=False),
}
