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
    postprocess: bool = True
    """Fit location, weights in the pool with the references, and spread on the validation range, and forecast so."""
    postprocess_origins: Count = 100
    """Origins per series at most, evenly spaced over the validation range, that post-processing is fitted on."""
    sampling_origins: Counted = 24
    """The same for choosing among the sampling settings below, with at most 8 paths each; 0: those above stay."""
    try_temperatures: tuple[float, ...] = (0.8, 1.0, 1.2)
    """Temperatures to choose from on the validation range, beside the one above."""
    try_top_p: tuple[float, ...] = (0.9, 1.0)
    """Cumulative probabilities to choose from there, each with every temperature."""
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
        if not all(one > 0 for one in self.try_temperatures):
            raise ValueError(f"try_temperatures: expected numbers above 0, found {self.try_temperatures}")
        if not all(0 < one <= 1 for one in self.try_top_p):
            raise ValueError(f"try_top_p: expected shares above 0 and at most 1, found {self.try_top_p}")


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
    """Least share of bars that the 90 % band of what would be served must cover. Where so few paths are drawn that
    none of them bounds such a band, this and the next are lowered by what a perfect forecaster misses."""
    coverage_high: Annotated[float, Bounds(gt=0, le=1)] = 0.95
    """Largest share that it may cover: above, its fan says too little."""
    reference_margin: Share | None = 0.01
    """By how much, relative to the CRPS of the references alone, the blend with the challenger may be worse at the
    far end of the interval; its mean may not be worse at all. Empty: the challenger need not earn its place."""
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
