"""Fitting a model's calibration on the validation range: its own forecasts there, against what happened.

Shapes: N origins, B origins of a batch, S sample paths, H steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kronos_model.calibration import LEVELS, Calibration, fewest_origins
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.metrics import crps, log_returns
from kronos_model.evaluation.walk_forward import Forecasts, walk_forward
from kronos_model.sampling import SamplingConfig
from kronos_model.windows import WindowDataset

__all__ = ["Fitted", "fit_calibration", "fit_unless_harmful"]

_WORSE = 0.01  # of the raw CRPS may a calibration cost where it is compared: that is within the noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A calibration, or none, and why in words."""

    calibration: Calibration | None
    reason: str


def fit_calibration(
    dataset: WindowDataset,
    model: ModelCompetitor,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Fitted:
    """Factors from at most calibration_origins per series of the validation range, unless they do harm there."""
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
    closes = np.concatenate([one.paths[model.name] for one in kept])  # (N, S, H)
    samples = log_returns(closes, scores.last_close)
    return fit_unless_harmful(samples, scores.realised, scores.origin_ms, model.sampling)


def fit_unless_harmful(
    samples: NDArray[np.float64],
    realised: NDArray[np.float64],
    origin_ms: NDArray[np.int64],
    sampling: SamplingConfig,
) -> Fitted:
    """From log returns of paths (N, S, H) and of what happened (N, H), at origins (N,) of all series.

    A wider fan covers more and may still forecast worse. So factors fitted on every other origin time are tried on
    the times between; where they raise the CRPS there by more than 1 %, there is no calibration. The one returned
    is fitted on all origins.
    """
    fitted_on = np.isin(origin_ms, np.unique(origin_ms)[::2])
    found, needed = int(min(fitted_on.sum(), (~fitted_on).sum())), fewest_origins(LEVELS[-1])
    if found < needed:
        return Fitted(
            calibration=None,
            reason=f"every other origin time of the validation range has {found} origins, and {needed} are needed",
        )
    trial = Calibration.fit(samples[fitted_on], realised[fitted_on], sampling)
    held_out, truth = samples[~fitted_on], realised[~fitted_on]
    raw, scaled = (float(crps(paths, truth).mean()) for paths in (held_out, trial.scale(held_out)))
    change = f"the CRPS of held-out validation origins from {1e4 * raw:.2f} to {1e4 * scaled:.2f} bps"
    if scaled > (1 + _WORSE) * raw:
        return Fitted(calibration=None, reason=f"it would raise {change}")
    return Fitted(calibration=Calibration.fit(samples, realised, sampling), reason=f"it moves {change}")
