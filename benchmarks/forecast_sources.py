"""Loss sources case of benchmarks/forecast.py: how much of a network's CRPS is location, spread and tokenizer.

Location is what shrinking its median's move takes away, spread what its own conformal factors take away after that.
The tokenizer's part is how far off the closes of the horizon are once they went through it alone: no predictor that
speaks its tokens can come nearer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kronos_model.evaluation.scores import RAW, Scores
from kronos_model.features import CLOSE
from kronos_model.forecaster import Forecaster
from kronos_model.windows import WindowDataset

__all__ = ["loss_sources"]

WINDOWS, BATCH, BPS = 512, 64, 10_000

Floats = np.ndarray[Any, np.dtype[np.float64]]


def loss_sources(scores: Scores, windows: WindowDataset, challenger: Mapping[str, Any]) -> dict[str, Any]:
    """Basis points of log return, at some steps of the horizon and over all of it."""
    raw = "challenger" + RAW if "challenger" + RAW in scores.models else "challenger"
    by_step = {
        "as_it_draws": scores.crps[scores.index(raw)].mean(axis=0),
        "after_location": scores.stage_crps[scores.stages.index("location")].mean(axis=0),
        "alone": scores.crps[scores.index("challenger")].mean(axis=0),
        "ewma": scores.crps[scores.index("ewma")].mean(axis=0),
        "tokenizer": tokenizer_error(windows, challenger).mean(axis=0),
    }
    steps = [step for step in (1, 2, 6, 12, 24, 48) if step <= scores.horizon]
    return {
        "case": "loss_sources",
        "steps": steps,
        "bps": {
            name: [round(BPS * float(values[step - 1]), 1) for step in steps] + [_bps(values)]
            for name, values in by_step.items()
        },
    }


def tokenizer_error(windows: WindowDataset, challenger: Mapping[str, Any]) -> Floats:
    """|log return| (N, H) between the closes of test windows and the same after encoding and decoding."""
    network = Forecaster.load(Path(challenger["tokenizer"]), Path(challenger["predictor"]))
    chosen = np.linspace(0, windows.count("test") - 1, WINDOWS).round().astype(np.int64)
    errors = []
    for start in range(0, WINDOWS, BATCH):
        batch = windows.batch("test", np.unique(chosen[start : start + BATCH]))
        known = batch.features[:, : windows.lookback]
        scale = network.normaliser.measure(known, batch.series)
        with torch.inference_mode():
            _, fine = network.tokenizer(network.normaliser.forward(batch.features, scale)).reconstructions
            closes = network.normaliser.inverse(fine, scale)[:, windows.lookback :, CLOSE]
        truth = batch.features[:, windows.lookback :, CLOSE]
        errors.append(np.abs(np.log(closes.clamp_min(1e-12).numpy() / truth.numpy())))
    return np.concatenate(errors).astype(np.float64)


def _bps(values: Floats) -> float:
    return round(BPS * float(values.mean()), 1)
