"""Gradients under the names of the checkpoint, which ours and upstream's model share."""

import copy

import torch
from torch import Tensor, nn

__all__ = ["named_gradients"]


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, by its key in the state dict."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for copied, parameter in zip(twin.parameters(), model.parameters(), strict=True):
            copied.copy_(torch.full_like(copied, torch.nan) if parameter.grad is None else parameter.grad)
    buffers = {name for name, _ in model.named_buffers()}
    found = {name: value for name, value in twin.state_dict().items() if name not in buffers}
    return {name: value for name, value in found.items() if not value.isnan().all()}
