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

__all__ = [
    "KEYS_AND_VALUES",
    "QUERIES",
    "Cache",
    "CachedStack",
    "NewBars",
    "Place",
    "Turns",
    "normalise",
    "pick",
    "turned",
]


Place = int | Tensor
"""A place in the suffix; a tensor (1,) where moving on must not change the program, as in a CUDA graph."""


def pick(x: Tensor, place: Place, bars: int) -> Tensor:
    """So many bars of x (B, H, ...) from a place on; one, where the place is a tensor."""
    return x.index_select(1, place) if isinstance(place, Tensor) else x.narrow(1, place, bars)


@dataclass(frozen=True, slots=True)
class Turns:
    """Rotary angles of positions, for queries, keys and values: queries are scaled too, values stay as they are."""

    cos: Tensor  # (..., T, 3, 1, d)
    sin: Tensor  # the first half negated

    @classmethod
    def table(cls, rotary: Rotary, length: int, *, turn: bool = True) -> "Turns":
        """Of the positions 0..length-1; without `turn` nothing is rotated, only scaled."""
        cos, sin = rotary(length)
        if not turn:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        first, second = sin.chunk(2, dim=-1)
        sin, scale = torch.cat([-first, second], dim=-1), rotary.head_dim**-0.5
        return cls(
            torch.stack([cos * scale, cos, torch.ones_like(cos)], dim=1).unsqueeze(2),
            torch.stack([sin * scale, sin, torch.zeros_like(sin)], dim=1).unsqueeze(2),
        )

    def at(self, positions: Tensor | slice) -> "Turns":
        """Of positions (...)."""
        return Turns(self.cos[positions], self.sin[positions])

    def bars(self, place: Place, bars: int) -> "Turns":
        """Of some of the bars of (B, H, 3, 1, d), with an axis for the samples: (B, 1, Q, 3, 1, d)."""
        return Turns(pick(self.cos, place, bars)[:, None], pick(self.sin, place, bars)[:, None])

    def copy_(self, other: "Turns") -> None:
        """Take over the values of another."""
        self.cos.copy_(other.cos)
        self.sin.copy_(other.sin)

    def of(self, parts: slice) -> "Turns":
        """For some of queries, keys and values."""
        return Turns(self.cos[..., parts, :, :], self.sin[..., parts, :, :])


QUERIES, KEYS_AND_VALUES = slice(0, 1), slice(1, 3)


def turned(x: Tensor, turns: Turns) -> Tensor:
    """x (..., d) turned, in float32 and back."""
    wide = x.float()
    return torch.addcmul(wide * turns.cos, wide.roll(x.shape[-1] // 2, -1), turns.sin).type_as(x)


def normalise(x: Tensor, norm: RMSNorm) -> Tensor:
    """The module's function for a float32 input, without its dispatch."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True).add_(norm.eps))
    return x * scale * norm.weight


@dataclass(frozen=True, slots=True)
class NewBars:
    """Q new bars of every sample: where they go, and what they may see."""

    turns: Turns
    """Their angles, (B, 1, Q, 3, 1, d)."""
    start: Place
    """Their first place in the suffix."""
    stop: int
    """So many places of the suffix are looked at."""
    mask: Tensor | None = None
    """Added to the scores of these places, (Q, stop); None where each may be seen."""


class Cache:
    """Keys and values of one attention: of B prompts, and of what S samples of each have added."""

    def __init__(self, like: Tensor, *, series: int, heads: int, width: int, prompt: int) -> None:
        # zeros, because what a mask hides must be a number
        self.prefix = like.new_zeros(2, series, heads, prompt, width // heads)
        self.suffix = like.new_zeros(2, series, heads, 0, 0, width // heads)

    def reserve(self, samples: int, horizon: int) -> None:
        """Make room for so many bars of so many samples."""
        pair, series, heads, _, width = self.prefix.shape
        room = (pair, series, heads, samples, horizon, width)
        if self.suffix.shape != room:
            self.suffix = self.prefix.new_zeros(room)

    def remember(self, pair: Tensor, new: NewBars) -> None:
        """Keys and values (2, B, M, S, Q, d) of new bars."""
        if isinstance(new.start, Tensor):
            self.suffix.index_copy_(4, new.start, pair)
        else:
            self.suffix[:, :, :, :, new.start : new.start + pair.shape[4]] = pair

    def attend(self, queries: Tensor, new: NewBars, padding: Tensor | None) -> Tensor:
        """What queries (B, M, S, Q, d), turned and scaled, find: (B, S, Q, D).

        `padding` (B, 1, C) is added to the scores of the prompts, -inf after the end of a shorter one.
        """
        series, heads, samples, bars, width = queries.shape
        keys, values = self.prefix.flatten(1, 2)  # (B M, C, d)
        prefix = keys.shape[1]
        stacked = queries.contiguous().view(series * heads, samples * bars, width)
        hidden = None if padding is None else padding.repeat_interleave(heads, dim=0)
        shared = _scores(stacked, keys, hidden).view(-1, bars, prefix)  # (B M S, Q, C)
        if new.stop == 0:
            found = torch.bmm(_stacked(shared.softmax(dim=-1), stacked), values)
        else:
            own_keys, own_values = self.suffix[:, :, :, :, : new.stop].flatten(1, 3)  # (B M S, stop, d)
            own = _scores(stacked.view(-1, bars, width), own_keys, new.mask)
            weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
            found = torch.bmm(_stacked(weights, stacked)[..., :prefix], values).view(-1, bars, width)
            found = torch.baddbmm(found, weights[..., prefix:], own_values)
        return found.view(series, heads, samples, bars, width).permute(0, 2, 3, 1, 4).flatten(3)


def _stacked(weights: Tensor, queries: Tensor) -> Tensor:
    """Weights (B M S, Q, ...) as one matrix per series and head, (B M, S Q, ...), like the queries."""
    return weights.view(*queries.shape[:2], -1)


def _scores(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    turned = keys.transpose(1, 2)
    return torch.bmm(queries, turned) if mask is None else torch.baddbmm(mask, queries, turned)


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

    def project(self, x: Tensor, turns: Turns) -> Tensor:
        """Turned queries and keys, and values, (..., 3, M, d)."""
        qkv = self.qkv(normalise(x, self.norm1))
        return turned(qkv.view(*x.shape[:-1], 3, self.heads, -1), turns)

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
            qkv = block.project(x, turns).permute(2, 0, 3, 1, 4)  # (3, B, M, C, d)
            cache.prefix.copy_(qkv[1:])
            queries, keys, values = qkv.unbind()
            found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0)
            x = block.finish(x, found.transpose(1, 2).flatten(2))
        return x

    def extend(self, x: Tensor, new: NewBars, caches: list[Cache], padding: Tensor | None) -> Tensor:
        """Read Q more bars (B, S, Q, D) of every sample."""
        for block, cache in zip(self.blocks, caches, strict=True):
            qkv = block.project(x, new.turns).permute(3, 0, 4, 1, 2, 5)  # (3, B, M, S, Q, d)
            cache.remember(qkv[1:], new)
            x = block.finish(x, cache.attend(qkv[0], new, padding))
        return x
