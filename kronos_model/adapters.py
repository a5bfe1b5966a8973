"""Training less than everything: frozen bottom layers, and low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685).

An adapter adds up @ down, of rank r, to a projection's frozen weight; a fused projection has one for each part.
Merged, the model is an ordinary one again, with upstream's keys and shapes.
"""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

from kronos_model.jobs import Targets
from kronos_model.layers import Adapter, Attention, FeedForward, Linear
from kronos_model.predictor import Kronos
from kronos_model.pretrained import Pretrained
from kronos_model.tokenizer import KronosTokenizer

__all__ = ["add_adapters", "freeze_bottom", "merged"]

ModelT = TypeVar("ModelT", bound=Pretrained)  # type: ignore[type-arg]


def freeze_bottom(model: Kronos | KronosTokenizer, layers: int) -> None:
    """Leave the first blocks, and the embeddings below them, as they are; 0 freezes nothing."""
    if layers == 0:
        return
    blocks = model.transformer if isinstance(model, Kronos) else model.encoder
    if layers > len(blocks):
        raise ValueError(f"frozen_layers: expected at most {len(blocks)}, the model's blocks, found {layers}")
    below = [model.embedding, model.time_emb] if isinstance(model, Kronos) else [model.embed]
    for module in [*below, *blocks[:layers]]:
        module.requires_grad_(False)


def add_adapters(
    model: Kronos | KronosTokenizer, *, rank: int, alpha: float, targets: Targets, seed: int
) -> None:
    """Freeze the model and give its attention's or feed-forwards' projections adapters; rank 0 does nothing.

    A projection that was frozen before gets none. An adapter starts at zero: the model computes what it did.
    """
    if rank == 0:
        return
    wanted = [part for part in _projections(model, targets) if part.weight.requires_grad]
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)  # the same in every process
    for projection in wanted:
        adapter = Adapter(projection, rank=rank, scale=alpha / rank)
        bound = 1 / math.sqrt(projection.in_features)
        with torch.no_grad():
            adapter.down.copy_((torch.rand(adapter.down.shape, generator=generator) * 2 - 1) * bound)
        projection.adapter = adapter.to(projection.weight.device)


def merged(model: ModelT) -> ModelT:
    """The model itself where it has no adapters, else a copy with what they add in the weights."""
    if not any(isinstance(module, Adapter) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Linear) and module.adapter is not None:
            with torch.no_grad():
                module.weight.copy_(module.effective_weight())
            module.adapter = None
    return model


def _projections(model: nn.Module, targets: Targets) -> list[Linear]:
    kinds = {"attention": (Attention,), "mlp": (FeedForward,), "all": (Attention, FeedForward)}[targets]
    parents = [module for module in model.modules() if isinstance(module, kinds)]
    return [part for parent in parents for part in parent.children() if isinstance(part, Linear)]
