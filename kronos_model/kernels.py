"""Causal attention in training, sooner on CPUs than torch's.

B batch, M heads, T positions, d width of a head. It computes what torch's does, up to rounding, and drops weights
by another random stream of the same distribution. On other devices and without gradients torch's own runs.

torch's CPU attention materialises everything with dropout, and gains nothing from bfloat16 (in training, 8 x 8
heads of 512 x 64 on Zen 4: 450 ms with dropout, 220 here; without, half of it, in bfloat16 a quarter). A block of
queries is computed at a time, and again in the backward pass, as in FlashAttention (Dao et al. 2022, arXiv
2205.14135). What else was tried is in docs/decisions.md.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["causal_attention"]

_BLOCK = 128  # queries at a time: later keys are left out, and a block's scores stay in the cache


def causal_attention(q: Tensor, k: Tensor, v: Tensor, share: float) -> Tensor:
    """Each position attends to itself and those before it, (B, M, T, d) each; `share` of weights dropped."""
    better = share > 0 or q.dtype == torch.bfloat16
    if better and q.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _CausalAttention.apply(q, k, v, share)  # type: ignore[no-any-return, no-untyped-call]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=share, is_causal=True)


def _drawn(count: int, share: float) -> tuple[Tensor, float]:
    """So many booleans, `share` of them true (to 1/65536), and what scales up the rest."""
    lowest = round(share * 65536)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count] < lowest - 32768, 65536 / (65536 - lowest)


class _CausalAttention(Function):
    """Blocks of queries over all heads at once; the scores are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, share: float) -> Tensor:
        ctx.shape, ctx.scale = q.shape, q.shape[-1] ** -0.5
        q, k, v = (q * ctx.scale).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B x M, T, d)
        ctx.blocks = _blocks(q.shape[1])
        ctx.dropped, ctx.scale_up = _attention_drops(q, share, ctx.blocks)
        ctx.save_for_backward(q, k, v)
        out, above = torch.empty_like(q), _above(q)
        for block, (first, last) in enumerate(ctx.blocks):
            weights = _weights(q[:, first:last], k[:, :last], above)
            if ctx.dropped:
                weights.masked_fill_(ctx.dropped[block], 0.0)
            out[:, first:last] = torch.bmm(weights, v[:, :last])
        return out.mul_(ctx.scale_up).view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        of_out = (gradients[0] * ctx.scale_up).flatten(0, 1)
        of_q, above = torch.empty_like(q), _above(q)
        of_k, of_v = torch.zeros_like(k), torch.zeros_like(v)
        for block, (first, last) in enumerate(ctx.blocks):
            some, wanted = q[:, first:last], of_out[:, first:last]
            weights = _weights(some, k[:, :last], above)
            of_weights = torch.bmm(wanted, v[:, :last].transpose(1, 2))
            used = weights
            if ctx.dropped:
                used = weights.masked_fill(ctx.dropped[block], 0.0)
                of_weights.masked_fill_(ctx.dropped[block], 0.0)
            of_v[:, :last] += torch.bmm(used.transpose(1, 2), wanted)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[:, first:last] = torch.bmm(of_scores, k[:, :last])
            of_k[:, :last] += torch.bmm(of_scores.transpose(1, 2), some)
        return *(part.view(ctx.shape) for part in (of_q.mul_(ctx.scale), of_k, of_v)), None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + _BLOCK, length)) for first in range(0, length, _BLOCK)]


def _above(q: Tensor) -> Tensor:
    """-inf above the diagonal of a block."""
    return q.new_full((_BLOCK, _BLOCK), -math.inf).triu(1)


def _weights(queries: Tensor, keys: Tensor, above: Tensor) -> Tensor:
    """Attention weights (B x M, queries, keys) of a block of queries, the last of the keys' positions."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    count = queries.shape[1]
    scores[..., keys.shape[1] - count :] += above[:count, :count]
    return scores.softmax(dim=-1)


def _attention_drops(q: Tensor, share: float, blocks: list[tuple[int, int]]) -> tuple[list[Tensor], float]:
    """Per block which weights to drop, (B x M, queries, keys); none at all where nothing is dropped."""
    if share == 0:
        return [], 1.0
    heads = len(q)
    shapes = [(heads, last - first, last) for first, last in blocks]
    dropped, scale = _drawn(sum(map(math.prod, shapes)), share)
    parts = torch.split(dropped, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)], scale
