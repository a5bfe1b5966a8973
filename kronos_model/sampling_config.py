"""How paths are drawn, in plain settings: reading them costs no torch."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Acceleration", "Precision", "SamplingConfig"]

Acceleration = Literal["off", "graph", "compile"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How tokens are drawn; temperature first, then top-k, then top-p."""

    temperature: float = 1.0
    """Divides the logits; below 1 sharpens, above 1 flattens, 0 always takes the likeliest token."""
    top_k: int | None = 0
    """Only this many likeliest tokens may be drawn; 0 or none: all, 1: always the likeliest."""
    top_p: float | None = 1.0
    """Only the likeliest tokens that together reach this share may be drawn; 1 or none: all."""
    samples: int = 20
    """Paths per series."""
    rows: int = 256
    """Paths advanced at once; bounds the memory, does not change the paths."""
    acceleration: Acceleration = "graph"
    """On a GPU: replay a bar's kernels as one CUDA graph, or compile them too, which takes a minute at first
    and pays for many forecasts of one shape. A CPU ignores it."""
    precision: Precision = "float32"
    """Of the predictor's weights and caches while sampling; half of it is faster, its paths are other draws."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {self.temperature}: use 0 for greedy.")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, found {self.top_k}: use 0 to keep all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p must be above 0 and at most 1, found {self.top_p}: use 1 to keep all tokens."
            )
        for name in ("samples", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}: raise it.")

    @property
    def greedy(self) -> bool:
        """All samples are the same path."""
        return self.temperature == 0 or self.top_k == 1
