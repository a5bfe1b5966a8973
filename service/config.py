"""How much the service takes on, and how it samples."""

from __future__ import annotations

from dataclasses import field

from kronos_model.sampling import SamplingConfig
from kronos_model.settings import Count, Counted, Seconds, settings

__all__ = ["MIN_TOKEN", "ServiceConfig"]

MIN_TOKEN = 16  # characters


@settings
class ServiceConfig:
    """Limits of the service, and how its forecasts are drawn."""

    recipes: tuple[str, ...] = ()
    """Recipes whose champions are served; empty: all that have one."""
    max_horizon: Count = 480
    """Most candles that one request may forecast."""
    max_samples: Count = 1000
    """Most paths that one request may draw."""
    max_points: Count = 120_000
    """Most candles that one request may draw in all: horizon times samples."""
    max_candles: Count = 5_000
    """Most candles in one answer of /candles."""
    max_body_bytes: Count = 16_384
    """Largest request body."""
    body_timeout_s: Seconds = 10.0
    """Longest wait for a request body, in seconds."""
    timeout_s: Seconds = 60.0
    """Longest wait for a forecast, in seconds; then the answer is 504 and nothing more is computed for it."""
    queue: Count = 128
    """Forecasts that may wait or be computed at once; one more is answered 503 with Retry-After."""
    batch_rows: Count = 256
    """Most paths that are drawn in one call of the sampler when several requests wait."""
    cache: Counted = 64
    """Latest forecasts kept in memory; the same question after the same candle is answered from there."""
    connections: Count = 512
    """Open connections; one more is answered 503."""
    watch_s: Seconds = 1.0
    """Seconds between two looks for a new champion."""
    threads: Count | None = None
    """CPU threads of the sampler; empty leaves the choice to torch."""
    as_judged: bool = True
    """Draw as the champion's post-processing was fitted, where there is one: sampling's temperature, top_k and top_p
    then count for other models only, for it holds for its own settings alone."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(samples=100))
    """How paths are drawn; its samples are those of a request that names none."""

    def __post_init__(self) -> None:
        if self.sampling.samples > self.max_samples:
            raise ValueError(
                f"sampling.samples must be at most max_samples ({self.max_samples}), found "
                f"{self.sampling.samples}: lower it."
            )
