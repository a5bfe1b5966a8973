"""The predictor and the tokenizer's decoder with caches: prompts once per series, then only what is new.

B series, S samples of each, R rows (B x S), C bars of prompt, H horizon, Q new bars, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kronos_model.cache import (
    KEYS_AND_VALUES,
    QUERIES,
    Cache,
    CachedStack,
    NewBars,
    Place,
    Turns,
    normalise,
    pick,
    turned,
)
from kronos_model.layers import TransformerBlock
from kronos_model.predictor import Kronos, S2Decode
from kronos_model.projection import projection
from kronos_model.tokenizer import KronosTokenizer

__all__ = ["CachedDecoder", "CachedPredictor", "DecodedPrompt", "Memory", "Prompt"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """B series of tokens, left-aligned, each with its own length."""

    s1_ids: Tensor  # (B, C)
    s2_ids: Tensor  # (B, C)
    stamps: Tensor  # (B, C, 5)
    lengths: Tensor  # (B,)

    def rows(self, series: Tensor) -> "Prompt":
        """Some of the series, cut to the longest of them."""
        lengths = self.lengths[series]
        bars = slice(int(lengths.max()))
        return Prompt(
            self.s1_ids[series, bars], self.s2_ids[series, bars], self.stamps[series, bars], lengths
        )

    def newest(self, bars: int) -> "Prompt":
        """At most so many bars of each, its newest."""
        if int(self.lengths.max()) <= bars:
            return self
        kept = self.lengths.clamp(max=bars)
        first = (self.lengths - kept)[:, None]
        columns = first + torch.arange(int(kept.max()), device=first.device)
        columns = columns.clamp(max=self.s1_ids.shape[1] - 1)  # what follows a shorter one's end is ignored
        rows = torch.arange(len(first), device=first.device)[:, None]
        return Prompt(
            self.s1_ids[rows, columns], self.s2_ids[rows, columns], self.stamps[rows, columns], kept
        )

    @property
    def ragged(self) -> bool:
        """Whether some are shorter than others."""
        return bool((self.lengths < self.s1_ids.shape[1]).any())

    def padding(self) -> Tensor:
        """-inf after the end of each, else 0, (B, 1, C)."""
        late = torch.arange(self.s1_ids.shape[1], device=self.lengths.device) >= self.lengths[:, None]
        return torch.zeros(late.shape, device=late.device).masked_fill(late, -torch.inf)[:, None]


class CachedPredictor:
    """A predictor's weights, prepared; a `Memory` of it reads prompts."""

    def __init__(self, predictor: Kronos, *, s2_decode: S2Decode, dtype: torch.dtype = torch.float32) -> None:
        self.stack = CachedStack(cast(list[TransformerBlock], predictor.transformer), dtype)
        self.norm, self.time_emb = predictor.norm, predictor.time_emb
        layer = predictor.dep_layer
        attention, width = layer.cross_attn, predictor.config.d_model
        self.dependency_heads, self.dependency_norm = attention.n_heads, layer.norm
        weight, bias = attention.qkv_proj.weight, attention.qkv_proj.bias
        self.dependency_keys = projection(weight[width:], bias[width:], dtype)
        self.dependency_out = projection(attention.out_proj.weight, attention.out_proj.bias, dtype)
        self.head_s1 = projection(predictor.head.proj_s1.weight, predictor.head.proj_s1.bias, dtype)
        self.head_s2 = projection(predictor.head.proj_s2.weight, predictor.head.proj_s2.bias, dtype)
        self.rotary, self.dependency_rotary = self.stack.attention.rotary, attention.rotary
        self.turn = s2_decode == "trained"  # upstream's single query is not turned, so its keys need not be
        # A row of each table is what a projection of that token's embedding would be.
        embedding = predictor.embedding
        fusion, scale = embedding.fusion_proj, embedding.scale
        mixing = fusion.weight.detach().float() * scale
        self.coarse = embedding.emb_s1.weight.detach().float() @ mixing[:, :width].T
        self.fine = embedding.emb_s2.weight.detach().float() @ mixing[:, width:].T + fusion.bias.detach()
        self.siblings = projection(weight[:width], bias[:width], dtype)(embedding.emb_s1.weight.detach())

    def embed(self, s1_ids: Tensor, s2_ids: Tensor, calendar: Tensor) -> Tensor:
        """Bars (..., D) of tokens (...) and the embedding of their stamps."""
        return self.coarse[s1_ids] + self.fine[s2_ids] + calendar


class Memory:
    """What a predictor remembers of B prompts, and of what S samples of each have added to them.

    Its tensors are allocated once, for prompts as ragged and as long as `room`, and written in place, so that a
    CUDA graph may refer to them.
    """

    def __init__(self, model: CachedPredictor, room: Prompt, *, samples: int, horizon: int) -> None:
        self.model, self.samples, self.horizon = model, samples, horizon
        like, (series, prompt) = model.siblings, room.s1_ids.shape
        self.caches = model.stack.caches(like, series=series, prompt=prompt)
        heads, width = model.dependency_heads, like.shape[-1]
        self.states = Cache(like, series=series, heads=heads, width=width, prompt=prompt)
        for cache in (*self.caches, self.states):
            cache.reserve(samples, horizon)
        self.table = Turns.table(model.rotary, prompt + horizon)
        self.state_table = Turns.table(model.dependency_rotary, prompt + horizon, turn=model.turn)
        after = torch.zeros(series, horizon + 1, dtype=torch.long, device=like.device)
        self.turns, self.state_turns = self.table.at(after[:, 1:]), self.state_table.at(after)
        self.future = like.new_zeros((series, horizon, width), dtype=torch.float32)
        self.padding = like.new_zeros((series, 1, prompt)) if room.ragged else None

    def read(self, prompt: Prompt, future_stamps: Tensor) -> None:
        """Read prompts of the room's length, which bars with the stamps (B, H, 5) will follow."""
        model, length, device = self.model, prompt.s1_ids.shape[1], prompt.s1_ids.device
        if self.padding is not None:
            self.padding.copy_(prompt.padding())
        self.future.copy_(model.time_emb(future_stamps))
        after = prompt.lengths[:, None] + torch.arange(-1, self.horizon, device=device)
        self.turns.copy_(self.table.at(after[:, 1:]))
        self.state_turns.copy_(self.state_table.at(after))
        x = model.embed(prompt.s1_ids, prompt.s2_ids, cast(Tensor, model.time_emb(prompt.stamps)))
        hidden = normalise(model.stack.read(x, self.table.at(slice(length)), self.caches), model.norm)
        pair = self._state_pair(hidden, self.state_table.at(slice(length)))  # (B, C, 2, M, d)
        self.states.prefix.copy_(pair.permute(2, 0, 3, 1, 4))
        self.hidden = hidden[torch.arange(len(hidden), device=device), prompt.lengths - 1][:, None]

    def extend(self, ids: Tensor, start: Place) -> None:
        """Read the bars (2, B, S, Q) that every sample has from `start` on."""
        model, bars = self.model, ids.shape[3]
        stop, mask = self._seen(start + bars)
        if bars > 1:
            mask = _causal(bars, stop, like=model.siblings)
        x = model.embed(ids[0], ids[1], pick(self.future, start, bars)[:, None])
        new = NewBars(self.turns.bars(start, bars), start, stop, mask)
        hidden = normalise(model.stack.extend(x, new, self.caches, self.padding), model.norm)
        pair = self._state_pair(hidden, self.state_turns.bars(start + 1, bars))  # (B, S, Q, 2, M, d)
        self.states.remember(pair.permute(3, 0, 4, 1, 2, 5), new)
        self.hidden = hidden[:, :, -1]

    def coarse_logits(self) -> Tensor:
        """Of the next bar's coarse token, (R, V)."""
        logits: Tensor = self.model.head_s1(self.hidden).float()
        return logits.expand(-1, self.samples, -1).flatten(0, 1)

    def fine_logits(self, s1_ids: Tensor, seen: Place) -> Tensor:
        """Of its fine token, (R, V), given its coarse one (B, S), when `seen` bars follow the prompt."""
        model = self.model
        new = NewBars(self.state_turns.bars(seen, 1), seen, *self._seen(seen))
        queries = model.siblings[s1_ids].view(*s1_ids.shape, 1, 1, model.dependency_heads, -1)
        queries = turned(queries, new.turns.of(QUERIES))[:, :, :, 0].permute(0, 3, 1, 2, 4)
        found = self.states.attend(queries, new, self.padding)[:, :, 0]
        conditioned = normalise(self.hidden + model.dependency_out(found), model.dependency_norm)
        logits: Tensor = model.head_s2(conditioned).float()
        return logits.flatten(0, 1)

    def _seen(self, count: Place) -> tuple[int, Tensor | None]:
        """How many places of the suffix to look at, and what hides those beyond the first `count`."""
        if not isinstance(count, Tensor):
            return count, None
        late = torch.arange(self.horizon, device=count.device) >= count
        return self.horizon, torch.zeros_like(late, dtype=self.model.siblings.dtype).masked_fill(
            late, -torch.inf
        )[None]

    def _state_pair(self, hidden: Tensor, turns: Turns) -> Tensor:
        """Keys, turned, and values (..., 2, M, d) of states (..., D)."""
        pair = self.model.dependency_keys(hidden).view(*hidden.shape[:-1], 2, self.model.dependency_heads, -1)
        return turned(pair, turns.of(KEYS_AND_VALUES))


class CachedDecoder:
    """The tokenizer's decoder, prepared; a `DecodedPrompt` of it reads prompts."""

    def __init__(self, tokenizer: KronosTokenizer) -> None:
        self.codes = tokenizer.tokenizer
        self.stack = CachedStack(cast(list[TransformerBlock], tokenizer.decoder))
        self.embed = projection(tokenizer.post_quant_embed.weight, tokenizer.post_quant_embed.bias)
        self.head = projection(tokenizer.head.weight, tokenizer.head.bias)


class DecodedPrompt:
    """Prompts read once per series; `bars` decodes what follows them, and only that."""

    def __init__(self, decoder: CachedDecoder, prompt: Prompt, *, horizon: int) -> None:
        self.decoder = decoder
        series, length = prompt.s1_ids.shape
        turns = Turns.table(decoder.stack.attention.rotary, length + horizon)
        x = decoder.embed(decoder.codes.decode(prompt.s1_ids, prompt.s2_ids))
        self.caches = decoder.stack.caches(x, series=series, prompt=length)
        positions = torch.arange(length + horizon, device=x.device)
        decoder.stack.read(x, turns.at(slice(length)), self.caches)
        self.padding = prompt.padding() if prompt.ragged else None
        self.mask = _causal(horizon, horizon, like=x)
        self.turns = turns.at(prompt.lengths[:, None] + positions[:horizon]).bars(0, horizon)

    def bars(self, ids: Tensor) -> Tensor:
        """Normalised bars (B, S, H, F) of the tokens (2, B, S, H) after the prompts."""
        _, _, samples, horizon = ids.shape
        for cache in self.caches:
            cache.reserve(samples, horizon)
        x = self.decoder.embed(self.decoder.codes.decode(ids[0], ids[1]))
        new = NewBars(self.turns, 0, horizon, self.mask)
        return self.decoder.head(self.decoder.stack.extend(x, new, self.caches, self.padding))


def _causal(bars: int, stop: int, *, like: Tensor) -> Tensor:
    """Hides from each of the last Q of `stop` places what stands behind it, (Q, stop)."""
    rows = torch.arange(stop - bars, stop, device=like.device)[:, None]
    late = torch.arange(stop, device=like.device) > rows
    return like.new_zeros((bars, stop)).masked_fill(late, -torch.inf)
