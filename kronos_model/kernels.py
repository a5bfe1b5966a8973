"""The same arithmetic, sooner: products, and causal attention in training, as CPUs do them best.

B batch, M heads, T positions, d width of a head. Both compute what their torch namesakes compute, up to rounding;
attention drops weights by another random stream of the same distribution. On other devices, in other types and
under autocast torch's own functions run. What was measured, and what did not pay, is in docs/decisions.md.

- MKL, which torch multiplies float32 with, takes a slow path on processors that are not Intel's; oneDNN does
  not (with AVX-512, GFLOP/s per core: 90 against 200 on AMD Zen 5, 96 against 107 on Zen 4).
- torch's CPU attention materialises everything with dropout, and gains nothing from bfloat16 (in training, 8 x 8
  heads of 512 x 64 on Zen 4: 450 ms with dropout, 220 here; without, half of it, in bfloat16 a quarter).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["causal_attention", "linear"]

_FEW_ROWS = 4  # below, both products take the same time
_BLOCK = 128  # queries at a time: later keys are left out, and a block's scores stay in the cache


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,)."""
    if _plain(x) and weight.dtype == torch.float32 and x.numel() >= _FEW_ROWS * x.shape[-1]:
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return F.linear(x, weight, bias)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, share: float) -> Tensor:
    """Each position attends to itself and those before it, (B, M, T, d) each; `share` of weights dropped."""
    better = share > 0 or q.dtype == torch.bfloat16
    if better and q.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _CausalAttention.apply(q, k, v, share)  # type: ignore[no-any-return, no-untyped-call]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=share, is_causal=True)


def _plain(x: Tensor) -> bool:
    """Float32 on a CPU that has oneDNN, and nobody asked for another precision."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return _has_onednn()


def _has_onednn() -> bool:
    if torch.compiler.is_compiling():  # which makes kernels of its own
        return False
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (..., K) times b (N, K) transposed, by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """a (R, N) transposed times b (R, K). oneDNN copies its first factor where it is transposed: the smaller."""
    if a.shape[1] <= b.shape[1]:
        return _times(a.t(), b.t())
    return _times(b.t(), a.t()).t()


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_rows, rows = gradients[0].flatten(0, -2), x.flatten(0, -2)
        of_x = _times(of_rows, weight.t()).view_as(x) if ctx.needs_input_grad[0] else None
        of_weight = _sum_of_products(of_rows, rows) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, of_rows.sum(dim=0) if ctx.needs_input_grad[2] else None


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
