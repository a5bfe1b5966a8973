"""What a walk-forward evaluation is allowed to cost, how paths are drawn in it, where it is clean, and who passes."""

from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Annotated, Literal

from kronos_model.settings import Bounds, Count, Counted, Positive, Seed, Share, TopP, settings

__all__ = ["PRETRAINING_END_MS", "Baseline", "EvaluationConfig", "GatePolicy"]

PRETRAINING_END_MS = int(datetime(2024, 7, 1, tzinfo=UTC).timestamp() * 1000)
"""Kronos was pre-trained on data up to June 2024 (arXiv 2508.02739, app. D)."""

FEE_BAND = 0.002
"""Moves below this log return, a round trip at 10 basis points a side, earn nothing and count for no direction."""

Baseline = Literal["drift", "seasonal_24h", "seasonal_7d", "ewma", "bootstrap", "har", "garch"]


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


@settings
class GatePolicy:
    """What a challenger must show before it may serve."""

    min_origins: Annotated[int, Bounds(ge=2)] = 30
    """Fewest forecast origins, over all series, on which anything but "keep" is decided."""
    min_blocks: Annotated[int, Bounds(ge=2)] = 8
    """Fewest stretches of one horizon among the origins; with less, the interval means nothing."""
    confidence: Annotated[float, Bounds(gt=0, lt=1)] = 0.9
    """Probability inside the two-sided interval of the CRPS difference; 0.9 leaves 5 % on each side."""
    draws: Annotated[int, Bounds(ge=100, le=1_000_000)] = 2000
    """Bootstrap draws behind that interval."""
    violation_margin: Share = 0.05
    """Share of impossible bars (high below close and the like) a challenger may have beyond its opponent."""
    coverage_low: Annotated[float, Bounds(ge=0, lt=1)] = 0.85
    """Least share of bars that the challenger's 90 % band must cover, as it serves (calibrated)."""
    coverage_high: Annotated[float, Bounds(gt=0, le=1)] = 0.95
    """Largest share that it may cover: above, its fan says too little."""
    codebook_drop: Share = 0.1
    """Relative loss of the tokenizer's codes in use that stage 1 may cause before the base tokenizer stays."""
    seed: Seed = 0
    """Seed of the bootstrap: the same scores always get the same decision."""

    def __post_init__(self) -> None:
        if self.coverage_low >= self.coverage_high:
            raise ValueError(
                f"coverage_low and coverage_high must be ascending shares, found {self.coverage_low} and "
                f"{self.coverage_high}; 0.85 and 0.95 are usual"
            )
