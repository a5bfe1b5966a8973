"""Normalisation as a pair with an inverse, the same one in training, evaluation and serving.

Statistics come from the lookback (window kinds) or from the training rows (global_robust), never from a bar
after the lookback. No number here is in units of price or volume, so that prices times any factor normalise to the
same values; floor="upstream" is the exception. Shapes: B batch, S samples, C context bars, T bars, F=6 features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kronos_model.errors import DataError
from kronos_model.features import Arithmetic, Floor, NormaliserKind, floored, location_and_width
from kronos_model.settings import Positive, settings

__all__ = ["Normaliser", "Scale"]


class Scale(NamedTuple):
    """Where a window's features lie and how wide they are."""

    location: Tensor  # (B, 1, F)
    scale: Tensor  # (B, 1, F), positive


@settings
class Normaliser:
    """Maps raw features to what the model reads, and back."""

    kind: NormaliserKind = "window_zscore"
    """window_zscore: mean and standard deviation of the lookback, as upstream. window_robust: median and
    1.4826 MAD of the lookback. global_robust: median and 1.4826 MAD of the series' training rows, in their units:
    a series in other units, or one that has left their range, needs another dataset and model."""

    clip: Positive = 5.0
    """Normalised values are cut to -clip..clip (standard deviations)."""

    floor: Floor = "relative"
    """relative: a column is at least a millionth of its location wide, whatever its unit. upstream: in units of price,
    1e-5 is added to the standard deviation, and robust widths are at least 1e-9."""

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
        """The counterpart of to_dict, for manifests and kronos_nightly.json.

        What was written before there was a floor to choose has upstream's, with which it was made.
        """
        told = {"floor": "upstream", **data}
        if set(told) != {"kind", "clip", "floor", "state"}:
            raise DataError(
                f"a normaliser is written as floor, kind, clip and state, found {', '.join(data) or 'nothing'}; "
                "take the dictionary from a dataset's manifest or from Normaliser.to_dict"
            )
        return cls(kind=told["kind"], clip=told["clip"], floor=told["floor"], state=told["state"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: kind, clip, floor and state."""
        return {"kind": self.kind, "clip": self.clip, "floor": self.floor, "state": dict(self.state)}

    def measure(self, context: Tensor, series: Sequence[str]) -> Scale:
        """Location and scale of each window from its context (B, C, F) alone; series names the B windows."""
        if self.kind == "global_robust":
            return self._recall(context, series)
        # In float64 (MPS has none), so that statistics depend neither on the batch nor on the unit of the numbers.
        wide = (context.cpu() if context.device.type == "mps" else context).double()
        location, width = location_and_width(wide, self.kind, self.floor, _TORCH)
        return Scale(location.to(context), width.to(context))

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
        return Scale(location, floored(location, scale, self.kind, self.floor, _TORCH))


def _median(x: Tensor) -> Tensor:
    """Mean of the two middle values along dim 1; torch.median would return the lower one."""
    bars = x.shape[1]
    upper_half = x.topk(bars // 2 + 1, dim=1, sorted=False).values  # four times as fast as sorting
    return upper_half.topk(2 - bars % 2, dim=1, largest=False).values.mean(dim=1, keepdim=True)


_TORCH: Arithmetic[Tensor] = Arithmetic(
    mean=lambda x: x.mean(dim=1, keepdim=True),
    deviation=lambda x: x.std(dim=1, correction=0, keepdim=True),
    median=_median,
    maximum=torch.maximum,
    where=torch.where,
)


def _aligned(scale: Scale, x: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale with a sample axis where x has one."""
    if x.dim() == 4:
        return scale.location.unsqueeze(1), scale.scale.unsqueeze(1)
    return scale.location, scale.scale
