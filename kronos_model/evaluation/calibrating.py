"""Fitting a model's calibration on the validation range: its own forecasts there, against what happened.

Shapes: N origins, B origins of a batch, S sample paths, H steps.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kronos_model.calibration import Calibration, fewest_origins
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.metrics import log_returns
from kronos_model.evaluation.walk_forward import Forecasts, walk_forward
from kronos_model.windows import WindowDataset

__all__ = ["CALIBRATED_LEVEL", "fit_calibration"]

CALIBRATED_LEVEL = 0.9
"""The interval that the gate asks about."""


def fit_calibration(
    dataset: WindowDataset,
    model: ModelCompetitor,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Calibration | None:
    """Factors from at most calibration_origins per series; None where the validation range has too few."""
    kept: list[Forecasts] = []
    config = replace(
        model.config,
        origins=model.config.calibration_origins,
        stride=None,
        calibrate=False,
        keep_paths=True,
    )
    scores = walk_forward(
        dataset,
        [replace(model, config=config)],
        config,
        split="validation",
        keep=lambda batch, forecasts: kept.append(forecasts),
        progress=progress,
    )
    if len(scores.origin_ms) < fewest_origins(CALIBRATED_LEVEL):
        return None
    closes = np.concatenate([one.paths[model.name] for one in kept])  # (N, S, H)
    samples = log_returns(closes, scores.last_close)
    return Calibration.fit(samples, scores.realised, model.sampling, level=CALIBRATED_LEVEL)
