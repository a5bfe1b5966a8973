"""How paths are drawn, in plain settings: reading them costs no torch."""

from typing import Literal

from kronos_model.settings import Count, Counted, NotNegative, TopP, settings

__all__ = ["Acceleration", "Precision", "SamplingConfig"]

Acceleration = Literal["off", "graph", "compile"]
Precision = Literal["float32", "bfloat16", "float16"]


@settings
class SamplingConfig:
    """How tokens are drawn; temperature first, then top-k, then top-p."""

    temperature: NotNegative = 1.0
    """Divides the logits; below 1 sharpens, above 1 flattens, 0 always takes the likeliest token."""
    top_k: Counted | None = 0
    """Only this many likeliest tokens may be drawn; 0 or none: all, 1: always the likeliest."""
    top_p: TopP | None = 1.0
    """Only the likeliest tokens that together reach this share may be drawn; 1 or none: all."""
    samples: Count = 20
    """Paths per series."""
    rows: Count = 256
    """Paths advanced at once; bounds the memory, does not change the paths."""
    acceleration: Acceleration = "graph"
    """On a GPU: replay a bar's kernels as one CUDA graph, or compile them too, which takes a minute at first
    and pays for many forecasts of one shape. A CPU ignores it."""
    precision: Precision = "float32"
    """Of the predictor's weights and caches while sampling; half of it is faster, its paths are other draws."""

    @property
    def greedy(self) -> bool:
        """All samples are the same path."""
        return self.temperature == 0 or self.top_k == 1
