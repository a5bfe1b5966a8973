"""Normalisation as a pair with an inverse, the same one in training, evaluation and serving.

Statistics come from the lookback (window kinds) or from the training rows (global_robust), never from a bar
after the lookback. Shapes: B batch, S samples, C context bars, T bars, F=6 features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kronos_model.errors import DataError
from kronos_model.features import MAD_TO_STD, NormaliserKind
from kronos_model.settings import Positive, settings

__all__ = ["Normaliser", "Scale"]

_ZSCORE_EPSILON = 1e-5  # upstream's KronosPredictor.predict: (x - mean) / (std + 1e-5)
_RELATIVE_FLOOR = 1e-6  # of the location: about the step between two float32 prices
_ABSOLUTE_FLOOR = 1e-9  # a column that is zero throughout


class Scale(NamedTuple):
    """Where a window's features lie and how wide they are."""

    location: Tensor  # (B, 1, F)
    scale: Tensor  # (B, 1, F), positive


@settings
class Normaliser:
    """Maps raw features to what the model reads, and back."""

    kind: NormaliserKind = "window_zscore"
    """window_zscore: mean and standard deviation of the lookback, as upstream. window_robust: median and
    1.4826 MAD of the lookback. global_robust: median and 1.4826 MAD of the series' training rows."""

    clip: Positive = 5.0
    """Normalised values are cut to -clip..clip (standard deviations)."""

    state: Mapping[str, Any] = field(default_factory=dict)
    """What fit learned; empty for the window kinds."""

    def __post_init__(self) -> None:
        expected = ["series"] if self.kind == "global_robust" else []
        if sorted(self.state) != expected:
            raise ValueError(
                f"{self.kind}: expected a state of {expected}, found {sorted(self.state)}; "
                "make it with features.fit_state on the training rows"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The counterpart of to_dict, for manifests and kronos_nightly.json."""
        if set(data) != {"kind", "clip", "state"}:
            raise DataError(
                f"a normaliser is written as kind, clip and state, found {', '.join(data) or 'nothing'}; "
                "take the dictionary from a dataset's manifest or from Normaliser.to_dict"
            )
        return cls(kind=data["kind"], clip=data["clip"], state=data["state"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: kind, clip and state."""
        return {"kind": self.kind, "clip": self.clip, "state": dict(self.state)}

    def measure(self, context: Tensor, series: Sequence[str]) -> Scale:
        """Location and scale of each window from its context (B, C, F) alone; series names the B windows."""
        if self.kind == "global_robust":
            return self._recall(context, series)
        # Summed in float64 (MPS has none) so that a window's statistics do not depend on its batch.
        wide = context if context.device.type == "mps" else context.double()
        location, scale = _zscore(wide) if self.kind == "window_zscore" else _robust(wide)
        return Scale(location.to(context.dtype), scale.to(context.dtype))

    def forward(self, x: Tensor, scale: Scale) -> Tensor:
        """Raw (B, T, F) or (B, S, T, F) to normalised, clipped values of the same shape."""
        location, width = _aligned(scale, x)
        return ((x - location) / width).clamp(-self.clip, self.clip)

    def inverse(self, x: Tensor, scale: Scale) -> Tensor:
        """Normalised (B, T, F) or (B, S, T, F) to raw values; undoes forward where nothing was clipped."""
        location, width = _aligned(scale, x)
        return x * width + location

    def _recall(self, context: Tensor, series: Sequence[str]) -> Scale:
        known = self.state["series"]
        if unknown := sorted(set(series) - set(known)):
            raise DataError(
                f"global_robust was fitted on {', '.join(sorted(known))}, found {', '.join(unknown)}; "
                "use a model fitted on that series or one with a window normaliser"
            )
        location = context.new_tensor([known[name]["location"] for name in series]).unsqueeze(1)  # (B, 1, F)
        scale = context.new_tensor([known[name]["scale"] for name in series]).unsqueeze(1)
        return Scale(location, _floored(scale, location))


def _zscore(context: Tensor) -> tuple[Tensor, Tensor]:
    mean = context.mean(dim=1, keepdim=True)
    return mean, context.std(dim=1, correction=0, keepdim=True) + _ZSCORE_EPSILON


def _robust(context: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scaled MAD; the standard deviation where over half of the values are equal."""
    median = _median(context)
    scale = MAD_TO_STD * _median((context - median).abs())
    spread = context.std(dim=1, correction=0, keepdim=True)
    return median, _floored(torch.where(scale > 0, scale, spread), median)


def _median(x: Tensor) -> Tensor:
    """Mean of the two middle values along dim 1; torch.median would return the lower one."""
    bars = x.shape[1]
    upper_half = x.topk(bars // 2 + 1, dim=1, sorted=False).values  # four times as fast as sorting
    return upper_half.topk(2 - bars % 2, dim=1, largest=False).values.mean(dim=1, keepdim=True)


def _floored(scale: Tensor, location: Tensor) -> Tensor:
    return torch.maximum(scale, location.abs() * _RELATIVE_FLOOR).clamp_min(_ABSOLUTE_FLOOR)


def _aligned(scale: Scale, x: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale with a sample axis where x has one."""
    if x.dim() == 4:
        return scale.location.unsqueeze(1), scale.scale.unsqueeze(1)
    return scale.location, scale.scale
