"""What a walk-forward evaluation is allowed to cost, how paths are drawn in it, and where it is clean."""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec

__all__ = ["BASELINES", "PRETRAINING_END_MS", "EvaluationConfig"]

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
