"""What a walk-forward evaluation is allowed to cost, how paths are drawn in it, where it is clean, and who passes."""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec

__all__ = ["BASELINES", "PRETRAINING_END_MS", "EvaluationConfig", "GatePolicy"]

PRETRAINING_END_MS = int(datetime(2024, 7, 1, tzinfo=UTC).timestamp() * 1000)
"""Kronos was pre-trained on data up to June 2024 (arXiv 2508.02739, app. D)."""

FEE_BAND = 0.002
"""Moves below this log return, a round trip at 10 basis points a side, earn nothing and count for no direction."""

BASELINES = ("drift", "seasonal_24h", "seasonal_7d", "ewma", "bootstrap", "har", "garch")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How the test range is walked and how every model samples there."""

    origins: int = 100
    """Forecast origins per series at most, evenly spaced over the test range."""
    stride: int | None = None
    """Forecast every so many bars instead, whatever `origins` says. Empty: `origins` decides."""
    samples: int = 32
    """Sample paths per origin (at least 2: the CRPS needs a spread)."""
    temperature: float = 1.0
    """Sampling temperature; below 1 narrows the fan."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 means all."""
    top_p: float = 1.0
    """Sample within this cumulative probability; below 1 narrows the fan."""
    batch_origins: int = 16
    """Origins forecast at once; memory grows with batch_origins x samples."""
    calibrate: bool = True
    """Scale the spread of a model's paths by conformal factors of the validation range, unless they do harm there."""
    calibration_origins: int = 100
    """Origins per series at most, evenly spaced over the validation range, that the factors are fitted on."""
    baselines: tuple[str, ...] = ("drift", "seasonal_24h", "seasonal_7d", "ewma", "bootstrap")
    """Competitors beside the last value, which always runs: drift, seasonal_24h, seasonal_7d, ewma (a cone of
    historical volatility), bootstrap (of blocks of past returns), har (HAR-RV), garch (needs the extra `arch`)."""
    keep_paths: bool = False
    """Keep every sampled close beside the quantiles (samples x 4 bytes per origin, step and model)."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.baselines) - set(BASELINES)):
            raise ValueError(
                f"baselines must be out of {', '.join(BASELINES)}, found {', '.join(unknown)}; leave them out"
            )
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"baselines must differ, found {', '.join(self.baselines)}; name each once")
        if "garch" in self.baselines and find_spec("arch") is None:
            raise ValueError(
                "baselines may name garch where the library arch is installed, found none; "
                "install it with `pip install 'kronos-nightly[arch]'`, or leave garch out"
            )
        for name in ("origins", "batch_origins", "stride", "calibration_origins"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}; set {name}=1 or more")
        if self.samples < 2:
            raise ValueError(
                f"samples must be at least 2 for the CRPS, found {self.samples}; set samples=2 or more"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}; 1.0 samples as trained")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, found {self.top_k}; set top_k=0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], found {self.top_p}; 1.0 keeps all tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePolicy:
    """What a challenger must show before it may serve."""

    min_origins: int = 30
    """Fewest forecast origins, over all series, on which anything but "keep" is decided."""
    min_blocks: int = 8
    """Fewest stretches of one horizon among the origins; with less, the interval means nothing."""
    confidence: float = 0.9
    """Probability inside the two-sided interval of the CRPS difference; 0.9 leaves 5 % on each side."""
    draws: int = 2000
    """Bootstrap draws behind that interval."""
    violation_margin: float = 0.05
    """Share of impossible bars (high below close and the like) a challenger may have beyond its opponent."""
    coverage_low: float = 0.85
    """Least share of bars that the challenger's 90 % band must cover, as it serves (calibrated)."""
    coverage_high: float = 0.95
    """Largest share that it may cover: above, its fan says too little."""
    codebook_drop: float = 0.1
    """Relative loss of the tokenizer's codes in use that stage 1 may cause before the base tokenizer stays."""
    seed: int = 0
    """Seed of the bootstrap: the same scores always get the same decision."""

    def __post_init__(self) -> None:
        for name, least in (("min_origins", 2), ("min_blocks", 2), ("draws", 100)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}; raise it")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, found {self.confidence}; 0.9 is usual")
        if not 0 <= self.violation_margin <= 1:
            raise ValueError(f"violation_margin must lie in [0, 1], found {self.violation_margin}; try 0.05")
        if not 0 <= self.coverage_low < self.coverage_high <= 1:
            raise ValueError(
                f"coverage_low and coverage_high must be ascending shares, found {self.coverage_low} and "
                f"{self.coverage_high}; 0.85 and 0.95 are usual"
            )
        if not 0 <= self.codebook_drop <= 1:
            raise ValueError(f"codebook_drop must lie in [0, 1], found {self.codebook_drop}; try 0.1")
