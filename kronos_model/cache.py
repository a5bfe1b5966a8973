"""Transformer blocks that remember: a prompt is read once per series, the samples that continue it bar by bar.

B series, S samples of each, C bars of prompt (the prefix), H most bars after it (the suffix), Q new bars,
D width, M heads, d width of a head. A prefix is never copied per sample: the queries of a series' samples are
stacked against it as one matrix, and meet their own short suffixes in the same softmax.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kronos_model.layers import Attention, RMSNorm, Rotary, TransformerBlock
from kronos_model.projection import projection

__all__ = ["Cache", "CachedStack", "Span", "Turns", "normalise", "rotate"]


@dataclass(frozen=True, slots=True)
class Turns:
    """Rotary angles of positions, for queries (first) and keys; the queries' carry the scale of attention."""

    cos: Tensor  # (..., T, 2, 1, d)
    sin: Tensor  # the first half negated

    @classmethod
    def table(cls, rotary: Rotary, length: int, *, turn: bool = True) -> "Turns":
        """Of the positions 0..length-1; without `turn` nothing is rotated, only scaled."""
        cos, sin = rotary(length)
        if not turn:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        first, second = sin.chunk(2, dim=-1)
        scales = cos.new_tensor([rotary.head_dim**-0.5, 1.0]).view(2, 1, 1)
        signed = torch.cat([-first, second], dim=-1)
        return cls(cos[:, None, None] * scales, signed[:, None, None] * scales)

    def at(self, positions: Tensor) -> "Turns":
        """Of positions (...)."""
        return Turns(self.cos[positions], self.sin[positions])

    def part(self, index: int) -> "Turns":
        """For queries alone (0) or keys alone (1)."""
        return Turns(self.cos.select(-3, index), self.sin.select(-3, index))


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """x (..., d) turned, in float32 and back."""
    wide = x.float()
    return torch.addcmul(wide * turns.cos, wide.roll(x.shape[-1] // 2, -1), turns.sin).type_as(x)


def normalise(x: Tensor, norm: RMSNorm) -> Tensor:
    """The module's function, without its dispatch; float32 in, float32 out."""
    return F.rms_norm(x, x.shape[-1:], norm.weight.float(), norm.eps)


@dataclass(frozen=True, slots=True)
class Span:
    """Q new bars of every sample: where they go, and what they may see."""

    turns: Turns
    """Their angles, (B, 1, Q, 2, 1, d)."""
    start: int | Tensor
    """Their first place in the suffix; a tensor (Q,) of places where the step must not change the program."""
    stop: int
    """So many places of the suffix are looked at."""
    mask: Tensor | None
    """Added to the scores of these places, (Q, stop); None where each may be seen."""


class Cache:
    """Keys and values of one attention: of B prompts, and of what their S samples have added."""

    def __init__(self, like: Tensor, *, series: int, heads: int, width: int, prompt: int) -> None:
        room = (series, heads, prompt, width // heads)
        self.prefix_keys, self.prefix_values = like.new_empty(room), like.new_empty(room)
        self.keys = self.values = like.new_empty(0)  # (B, M, S, H, d)

    def reserve(self, samples: int, horizon: int) -> None:
        """Make room for so many bars of so many samples."""
        series, heads, _, width = self.prefix_keys.shape
        room = (series, heads, samples, horizon, width)
        if self.keys.shape != room:
            self.keys, self.values = self.prefix_keys.new_empty(room), self.prefix_keys.new_empty(room)

    def remember_prompt(self, keys: Tensor, values: Tensor) -> None:
        """(B, M, C, d) each."""
        self.prefix_keys.copy_(keys)
        self.prefix_values.copy_(values)

    def remember(self, keys: Tensor, values: Tensor, span: Span) -> None:
        """(B, M, S, Q, d) each."""
        if isinstance(span.start, Tensor):
            self.keys.index_copy_(3, span.start, keys)
            self.values.index_copy_(3, span.start, values)
        else:
            places = slice(span.start, span.start + keys.shape[3])
            self.keys[:, :, :, places], self.values[:, :, :, places] = keys, values

    def attend(self, queries: Tensor, span: Span, padding: Tensor | None) -> Tensor:
        """What queries (B, M, S, Q, d), turned and scaled, find: (B, S, Q, D).

        `padding` (B, 1, C) is added to the scores of the prompts, -inf after the end of a shorter one.
        """
        series, heads, samples, bars, width = queries.shape
        prefix = self.prefix_keys.shape[2]
        stacked = queries.contiguous().view(series * heads, samples * bars, width)
        shared = _scores(stacked, self.prefix_keys.flatten(0, 1), _per_head(padding, heads))
        shared = shared.view(-1, bars, prefix)  # (B M S, Q, C)
        rows = stacked.view(-1, bars, width)
        keys, values = (x[:, :, :, : span.stop].flatten(0, 2) for x in (self.keys, self.values))
        weights = torch.cat([shared, _scores(rows, keys, span.mask)], dim=-1).softmax(dim=-1)
        per_series = weights.view(series * heads, samples * bars, -1)[..., :prefix]
        found = torch.bmm(per_series, self.prefix_values.flatten(0, 1)).view(-1, bars, width)
        found = torch.baddbmm(found, weights[..., prefix:], values)
        return found.view(series, heads, samples, bars, width).permute(0, 2, 3, 1, 4).flatten(3)


def _scores(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    turned = keys.transpose(1, 2)
    return torch.bmm(queries, turned) if mask is None else torch.baddbmm(mask, queries, turned)


def _per_head(padding: Tensor | None, heads: int) -> Tensor | None:
    return None if padding is None else padding.repeat_interleave(heads, dim=0)


class _Block:
    """A block's weights, prepared."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        attention, feed = block.self_attn, block.ffn
        self.heads = attention.n_heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = projection(attention.qkv_proj.weight, attention.qkv_proj.bias, dtype)
        self.out = projection(attention.out_proj.weight, attention.out_proj.bias, dtype)
        self.w13 = projection(feed.w13.weight, None, dtype)
        self.w2 = projection(feed.w2.weight, None, dtype)

    def project(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        """Turned queries and keys (..., 2, M, d), and values (..., M, d)."""
        qkv = self.qkv(normalise(x, self.norm1)).view(*x.shape[:-1], 3, self.heads, -1)
        return rotate(qkv[..., :2, :, :], turns), qkv[..., 2, :, :]

    def finish(self, x: Tensor, found: Tensor) -> Tensor:
        """The block's output from its input and what its attention found."""
        x = x + self.out(found)
        gate, up = self.w13(normalise(x, self.norm2)).chunk(2, dim=-1)
        return x + self.w2(F.silu(gate) * up)


class CachedStack:
    """Transformer blocks with caches; the residual stream stays float32, products are in `dtype`."""

    def __init__(self, blocks: Iterable[TransformerBlock], dtype: torch.dtype = torch.float32) -> None:
        blocks = list(blocks)
        self.blocks = [_Block(block, dtype) for block in blocks]
        self.attention: Attention = blocks[0].self_attn
        self.dtype = dtype

    def caches(self, like: Tensor, *, series: int, prompt: int) -> list[Cache]:
        """Room for B prompts of C bars, on the device of `like`."""
        width = self.attention.out_proj.in_features
        empty = like.new_empty(0, dtype=self.dtype)
        return [
            Cache(empty, series=series, heads=block.heads, width=width, prompt=prompt)
            for block in self.blocks
        ]

    def read(self, x: Tensor, turns: Turns, caches: list[Cache]) -> Tensor:
        """Read prompts (B, C, D) from their first position on; what stands after an end is seen by none."""
        for block, cache in zip(self.blocks, caches, strict=True):
            turned, values = block.project(x, turns)
            queries, keys = turned.permute(2, 0, 3, 1, 4).unbind()  # (B, M, C, d)
            values = values.transpose(1, 2)
            cache.remember_prompt(keys, values)
            found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0)
            x = block.finish(x, found.transpose(1, 2).flatten(2))
        return x

    def extend(self, x: Tensor, span: Span, caches: list[Cache], padding: Tensor | None) -> Tensor:
        """Read Q more bars (B, S, Q, D) of every sample."""
        for block, cache in zip(self.blocks, caches, strict=True):
            turned, values = block.project(x, span.turns)
            queries, keys = turned.permute(3, 0, 4, 1, 2, 5).unbind()  # (B, M, S, Q, d)
            cache.remember(keys, values.permute(0, 3, 1, 2, 4), span)
            x = block.finish(x, cache.attend(queries, span, padding))
        return x
