"""What a walk-forward evaluation is allowed to cost, how paths are drawn in it, and where it is clean."""

from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Annotated, Literal, get_args

from kronos_model.settings import Bounds, Count, Counted, Positive, TopP, settings

__all__ = ["BASELINES", "PRETRAINING_END_MS", "EvaluationConfig"]

PRETRAINING_END_MS = int(datetime(2024, 7, 1, tzinfo=UTC).timestamp() * 1000)
"""Kronos was pre-trained on data up to June 2024 (arXiv 2508.02739, app. D)."""

FEE_BAND = 0.002
"""Moves below this log return, a round trip at 10 basis points a side, earn nothing and count for no direction."""

Baseline = Literal["drift", "seasonal_24h", "seasonal_7d", "ewma", "bootstrap", "har", "garch"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@settings
class EvaluationConfig:
    """How the test range is walked and how every model samples there."""

    origins: Count = 100
    """Forecast origins per series at most, evenly spaced over the test range."""
    stride: Count | None = None
    """Forecast every so many bars instead, whatever `origins` says. Empty: `origins` decides."""
    samples: Annotated[int, Bounds(ge=2)] = 32
    """Sample paths per origin (at least 2: the CRPS needs a spread)."""
    temperature: Positive = 1.0
    """Sampling temperature; below 1 narrows the fan."""
    top_k: Counted = 0
    """Sample among the k likeliest tokens only; 0 means all."""
    top_p: TopP = 1.0
    """Sample within this cumulative probability; below 1 narrows the fan."""
    batch_origins: Count = 16
    """Origins forecast at once; memory grows with batch_origins x samples."""
    calibrate: bool = True
    """Scale the spread of a model's paths by conformal factors of the validation range, unless they do harm there."""
    calibration_origins: Count = 100
    """Origins per series at most, evenly spaced over the validation range, that the factors are fitted on."""
    baselines: tuple[Baseline, ...] = ("drift", "seasonal_24h", "seasonal_7d", "ewma", "bootstrap")
    """Competitors beside the last value, which always runs: drift, seasonal_24h, seasonal_7d, ewma (a cone of
    historical volatility), bootstrap (of blocks of past returns), har (HAR-RV), garch (needs the extra `arch`)."""
    keep_paths: bool = False
    """Keep every sampled close beside the quantiles (samples x 4 bytes per origin, step and model)."""

    def __post_init__(self) -> None:
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"baselines must differ, found {', '.join(self.baselines)}; name each once")
        if "garch" in self.baselines and find_spec("arch") is None:
            raise ValueError(
                "baselines may name garch where the library arch is installed, found none; "
                "install it with `pip install 'kronos-nightly[arch]'`, or leave garch out"
            )
