"""How much the service takes on, and how it samples."""

from __future__ import annotations

from dataclasses import dataclass, field

from kronos_model.sampling import SamplingConfig

__all__ = ["MIN_TOKEN", "ServiceConfig"]

MIN_TOKEN = 16  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """Limits of the service, and how its forecasts are drawn."""

    recipes: tuple[str, ...] = ()
    """Recipes whose champions are served; empty: all that have one."""
    max_horizon: int = 480
    """Most candles that one request may forecast."""
    max_samples: int = 1000
    """Most paths that one request may draw."""
    max_points: int = 120_000
    """Most candles that one request may draw in all: horizon times samples."""
    max_candles: int = 5_000
    """Most candles in one answer of /candles."""
    max_body_bytes: int = 16_384
    """Largest request body."""
    body_timeout_s: float = 10.0
    """Longest wait for a request body, in seconds."""
    timeout_s: float = 60.0
    """Longest wait for a forecast, in seconds; then the answer is 504 and nothing more is computed for it."""
    queue: int = 128
    """Forecasts that may wait or be computed at once; one more is answered 503 with Retry-After."""
    batch_rows: int = 256
    """Most paths that are drawn in one call of the sampler when several requests wait."""
    cache: int = 64
    """Latest forecasts kept in memory; the same question after the same candle is answered from there."""
    connections: int = 512
    """Open connections; one more is answered 503."""
    watch_s: float = 1.0
    """Seconds between two looks for a new champion."""
    threads: int | None = None
    """CPU threads of the sampler; empty leaves the choice to torch."""
    as_judged: bool = True
    """Draw as the champion's spread was calibrated, where it was: sampling's temperature, top_k and top_p then count
    for other models only, for a calibration holds for its own settings alone."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(samples=100))
    """How paths are drawn; its samples are those of a request that names none."""

    def __post_init__(self) -> None:
        least = ("max_horizon", "max_samples", "max_points", "max_candles", "max_body_bytes", "queue")
        for name in (*least, "batch_rows", "connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}: raise it.")
        for name in ("body_timeout_s", "timeout_s", "watch_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, found {getattr(self, name)}: raise it.")
        if self.cache < 0:
            raise ValueError(f"cache must be at least 0, found {self.cache}: use 0 to keep nothing.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1 or empty, found {self.threads}: raise it.")
        if self.sampling.samples > self.max_samples:
            raise ValueError(
                f"sampling.samples must be at most max_samples ({self.max_samples}), found "
                f"{self.sampling.samples}: lower it."
            )
