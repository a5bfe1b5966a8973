"""Building blocks shared by the tokenizer and the predictor.

B batch, T positions, Q query positions, M heads, D width, d width of a head.
Attribute names are upstream's, because they are the keys of its checkpoints; projections of one input are
one matrix here and are saved and loaded as the separate ones that they are there.
A mask depends on arguments alone: training and evaluation attend to the same positions.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kronos_model.config import PredictorConfig, TokenizerConfig
from kronos_model.kernels import causal_attention, linear

__all__ = [
    "Adapter",
    "Angles",
    "Attention",
    "CalendarEmbedding",
    "DependencyLayer",
    "DualHead",
    "FeedForward",
    "FusedLinear",
    "Linear",
    "RMSNorm",
    "TokenEmbedding",
    "TransformerBlock",
    "initialise",
]

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, (T, d) each, in float32; both halves of a head turn alike."""

CALENDAR_SIZES = {"minute": 60, "hour": 24, "weekday": 7, "day": 32, "month": 13}

# Constants are computed here also under torch.device("meta"), where a loaded model begins: arithmetic or random
# numbers without memory make torch import its compiler, which takes longer than loading Kronos-small.
_MADE_ON = torch.device("cpu")


class RMSNorm(nn.Module):
    """Scale by the root mean square, in float32 (RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


class Linear(nn.Linear):
    """torch's, by the faster product where there is a choice, and with room for an adapter."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.adapter: Adapter | None = None

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.effective_weight(), self.bias)

    def effective_weight(self) -> Tensor:
        """The weight, with what the adapter adds to it."""
        return self.weight if self.adapter is None else self.weight + self.adapter()


class Adapter(nn.Module):
    """A low-rank addition to a projection's weight, one for each part of a fused one."""

    def __init__(self, projection: Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        parts = len(projection.part_names) if isinstance(projection, FusedLinear) else 1
        self.scale = scale
        self.down = nn.Parameter(torch.zeros(parts, rank, projection.in_features))
        self.up = nn.Parameter(torch.zeros(parts, projection.out_features // parts, rank))

    def forward(self) -> Tensor:
        return torch.bmm(self.up, self.down).flatten(0, 1) * self.scale


class Embedding(nn.Embedding):
    """torch's, which draws nothing where there is no memory yet; see _MADE_ON."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class FusedLinear(Linear):
    """Projections of one input as one product; the rows of its weight are theirs, one after the other."""

    def __init__(self, in_features: int, out_features: int, parts: Sequence[str], *, bias: bool) -> None:
        self.part_names = tuple(parts)
        super().__init__(in_features, out_features * len(parts), bias=bias)

    def reset_parameters(self) -> None:
        """Draw each part as a projection of its own, so that a seed means the same weights."""
        biases = [None] * len(self.part_names) if self.bias is None else self.split(self.bias.detach())
        for weight, bias in zip(self.split(self.weight.detach()), biases, strict=True):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            if bias is not None:
                nn.init.uniform_(bias, -(self.in_features**-0.5), self.in_features**-0.5)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parts of something with one row per output: the weight, the bias."""
        return rows.chunk(len(self.part_names))


def _save_apart(name: str, module: nn.Module, tensors: dict[str, Tensor], prefix: str, _: Any) -> None:
    """After state_dict: put the parts of a fused projection in its place."""
    fused = cast(FusedLinear, module.get_submodule(name))
    for kind, _parameter in fused.named_parameters(recurse=False):
        rows = tensors.pop(f"{prefix}{name}.{kind}")
        tensors |= {
            f"{prefix}{part}.{kind}": of_part
            for part, of_part in zip(fused.part_names, fused.split(rows), strict=True)
        }


def _load_fused(name: str, module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before load_state_dict: join the parts of a fused projection; where one is missing, torch complains."""
    fused = cast(FusedLinear, module.get_submodule(name))
    for kind, _parameter in fused.named_parameters(recurse=False):
        keys = [f"{prefix}{part}.{kind}" for part in fused.part_names]
        if all(key in tensors for key in keys):
            tensors[f"{prefix}{name}.{kind}"] = torch.cat([tensors.pop(key) for key in keys])


def _saved_as_parts(module: nn.Module, name: str) -> None:
    """Let a module save and load its fused projection `name` under the keys of the parts."""
    module.register_state_dict_post_hook(partial(_save_apart, name))  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(partial(_load_fused, name))  # type: ignore[no-untyped-call]


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.w13 = FusedLinear(d_model, ff_dim, ("w1", "w3"), bias=False)
        _saved_as_parts(self, "w13")
        self.w2 = Linear(ff_dim, d_model, bias=False)
        self.ffn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return cast(Tensor, self.ffn_dropout(self.w2(F.silu(gate) * up)))


class Rotary(nn.Module):
    """Rotary position angles (RoPE, Su et al. 2021, arXiv 2104.09864, section 3.2).

    Nothing is cached: one table per forward serves all blocks, and is always on the right device.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("inv_freq", _frequencies(head_dim, _MADE_ON))

    def forward(self, length: int) -> Angles:
        """Angles of the positions 0..length-1, in float32 even where the model's weights are not."""
        frequencies = self.inv_freq
        if frequencies.dtype != torch.float32:  # a model cast to half precision must not lose positions
            frequencies = _frequencies(self.head_dim, frequencies.device)
        positions = torch.arange(length, device=frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, frequencies).repeat(1, 2)  # (T, d)
        return angles.cos(), angles.sin()


def _frequencies(head_dim: int, device: torch.device) -> Tensor:
    return 1.0 / (10000 ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim))


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) with rotary positions, over itself or over another sequence."""

    def __init__(self, d_model: int, n_heads: int, attn_dropout: float, resid_dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = FusedLinear(d_model, d_model, ("q_proj", "k_proj", "v_proj"), bias=True)
        _saved_as_parts(self, "qkv_proj")
        self.out_proj = Linear(d_model, d_model)
        self.rotary = Rotary(d_model // n_heads)
        self.attn_dropout_p = attn_dropout
        self.resid_dropout = nn.Dropout(resid_dropout)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        angles: Angles | None,
        *,
        causal: bool,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` (B, Q, D), the last Q positions of `memory` (B, T, D).

        `angles` covers the T positions; None leaves positions out. `padding` (B, T) is true where a
        position holds nothing; no other position attends to it.
        """
        q, k, v = self.project(query, memory)
        past = k.shape[2] - q.shape[2]
        if angles is not None:
            q, k = _rotated(q, angles[0][past:], angles[1][past:]), _rotated(k, *angles)
        share = self.attn_dropout_p if self.training else 0.0
        if causal and past == 0 and padding is None:  # the kernel's own causal mask is the fastest
            return self.merge(causal_attention(q, k, v, share))
        mask = _mask(q, k, causal=causal, padding=padding)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=share))

    def project(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, M, Q, d), keys and values (B, M, T, d); one product where `query` is `memory`."""
        if query is memory:
            q, k, v = self._heads(self.qkv_proj(memory), 3)
            return q, k, v
        weight, bias = self.qkv_proj.effective_weight(), self.qkv_proj.bias
        width = memory.shape[-1]
        (q,) = self._heads(linear(query, weight[:width], bias[:width]), 1)
        k, v = self._heads(linear(memory, weight[width:], bias[width:]), 2)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """What attention found, (B, M, Q, d), projected to (B, Q, D)."""
        return cast(Tensor, self.resid_dropout(self.out_proj(heads.transpose(1, 2).flatten(2))))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.view(*x.shape[:2], parts, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., T, d) turned by the angles of its positions, in float32 and back."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).type_as(x)


def _mask(q: Tensor, k: Tensor, *, causal: bool, padding: Tensor | None) -> Tensor | None:
    """Where attention is allowed, (Q, T) or (B, 1, Q, T); None where it is allowed everywhere."""
    q_length, k_length = q.shape[2], k.shape[2]
    if padding is None and (not causal or q_length == 1):  # one query at the end sees everything
        return None
    rows = torch.arange(k_length - q_length, k_length, device=q.device)[:, None]
    columns = torch.arange(k_length, device=q.device)[None, :]
    allowed = columns <= rows if causal else torch.ones_like(columns <= rows)
    if padding is None:
        return allowed
    # a position always sees itself, else a row of padding alone would be 0/0
    return (allowed & ~padding.bool()[:, None, None, :]) | (columns == rows)


class TransformerBlock(nn.Module):
    """Causal self-attention and SwiGLU, each after its norm (pre-norm, Xiong et al. 2020, arXiv 2002.04745)."""

    def __init__(self, config: PredictorConfig | TokenizerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.norm1 = RMSNorm(width)
        self.self_attn = Attention(width, config.n_heads, config.attn_dropout_p, config.resid_dropout_p)
        self.norm2 = RMSNorm(width)
        self.ffn = FeedForward(width, config.ff_dim, config.ffn_dropout_p)

    def forward(self, x: Tensor, angles: Angles, padding: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, angles, causal=True, padding=padding)
        return cast(Tensor, x + self.ffn(self.norm2(x)))


class DependencyLayer(nn.Module):
    """Condition the trunk's state on the coarse token: the coarse embedding queries the states before it."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.cross_attn = Attention(d_model, n_heads, 0.0, 0.0)
        self.norm = RMSNorm(d_model)

    def forward(
        self,
        hidden: Tensor,
        sibling: Tensor,
        *,
        causal: bool = True,
        rotate: bool = True,
        padding: Tensor | None = None,
    ) -> Tensor:
        """`sibling` (B, Q, D) belongs to the last Q positions of `hidden` (B, T, D); returns (B, Q, D)."""
        angles = self.cross_attn.rotary(hidden.shape[1]) if rotate else None
        attended = self.cross_attn(sibling, hidden, angles, causal=causal, padding=padding)
        return cast(Tensor, self.norm(hidden[:, hidden.shape[1] - sibling.shape[1] :] + attended))


class TokenEmbedding(nn.Module):
    """One vector per bar from its coarse and fine token."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.emb_s1 = Embedding(2**s1_bits, d_model)
        self.emb_s2 = Embedding(2**s2_bits, d_model)
        self.fusion_proj = Linear(2 * d_model, d_model)
        self.scale = math.sqrt(d_model)

    def forward(self, s1_ids: Tensor, s2_ids: Tensor) -> Tensor:
        both = torch.cat([self.emb_s1(s1_ids) * self.scale, self.emb_s2(s2_ids) * self.scale], dim=-1)
        return cast(Tensor, self.fusion_proj(both))


class _FixedEmbedding(nn.Module):
    """Sinusoids that are not learned (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""

    def __init__(self, size: int, d_model: int) -> None:
        super().__init__()
        position = torch.arange(size, device=_MADE_ON).float()[:, None]
        halves = torch.arange(0, d_model, 2, device=_MADE_ON).float()
        rates = torch.exp(halves * (-math.log(10000.0) / d_model))
        table = torch.stack([torch.sin(position * rates), torch.cos(position * rates)], dim=-1).flatten(1)
        self.emb = Embedding(size, d_model)
        self.emb.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.emb(x))


class CalendarEmbedding(nn.Module):
    """Sum of the embeddings of minute, hour, weekday, day and month, the columns of a stamp."""

    def __init__(self, d_model: int, *, learned: bool) -> None:
        super().__init__()
        for name, size in CALENDAR_SIZES.items():
            table = Embedding(size, d_model) if learned else _FixedEmbedding(size, d_model)
            self.add_module(f"{name}_embed", table)

    def forward(self, stamp: Tensor) -> Tensor:
        minute, hour, weekday, day, month = (
            self.get_submodule(f"{name}_embed")(column)
            for name, column in zip(CALENDAR_SIZES, stamp.long().unbind(dim=-1), strict=True)
        )
        return cast(Tensor, hour + weekday + day + month + minute)  # upstream's order of summation


class DualHead(nn.Module):
    """Logits of the coarse token, and of the fine token from the conditioned state."""

    def __init__(self, s1_bits: int, s2_bits: int, d_model: int) -> None:
        super().__init__()
        self.proj_s1 = Linear(d_model, 2**s1_bits)
        self.proj_s2 = Linear(d_model, 2**s2_bits)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj_s1(x))

    def cond_forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj_s2(x))


def initialise(model: nn.Module, *, embedding_std: float) -> None:
    """Xavier-normal projections, zero biases, normal embeddings; what is frozen stays as built, what is meta too."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta:
            continue
        if isinstance(module, nn.Linear):
            parts = module.split(module.weight) if isinstance(module, FusedLinear) else (module.weight,)
            for part in parts:
                nn.init.xavier_normal_(part.detach())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) and module.weight.requires_grad:
            nn.init.normal_(module.weight, std=embedding_std)
