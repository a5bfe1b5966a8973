"""The predictor: coarse then fine token of the next bar, from the tokens and the calendar so far.

B batch, T bars, Q queried bars, D width, V1 and V2 vocabularies of the coarse and the fine token.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kronos_model.config import DEPENDENCY_HEADS, PredictorConfig
from kronos_model.layers import (
    CalendarEmbedding,
    DependencyLayer,
    DualHead,
    RMSNorm,
    TokenEmbedding,
    TransformerBlock,
    initialise,
)
from kronos_model.pretrained import Pretrained

__all__ = ["Kronos", "S2Decode", "draw_tokens"]

S2Decode = Literal["trained", "upstream"]
"""How the fine token is decoded: at its true position, as in training, or as upstream's code does it."""


class Kronos(Pretrained[PredictorConfig]):
    """Causal transformer over token pairs, with a head that conditions the fine token on the coarse one."""

    config_class = PredictorConfig

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__(config)
        self.embedding = TokenEmbedding(config.s1_bits, config.s2_bits, config.d_model)
        self.time_emb = CalendarEmbedding(config.d_model, learned=config.learn_te)
        self.token_drop = nn.Dropout(config.token_dropout_p)
        self.transformer = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.recompute = False  # in the backward pass, what is inside a block
        self.norm = RMSNorm(config.d_model)
        self.dep_layer = DependencyLayer(config.d_model, DEPENDENCY_HEADS)
        self.head = DualHead(config.s1_bits, config.s2_bits, config.d_model)
        initialise(self, embedding_std=config.d_model**-0.5)

    def forward(
        self,
        s1_ids: Tensor,
        s2_ids: Tensor,
        stamp: Tensor | None = None,
        padding_mask: Tensor | None = None,
        use_teacher_forcing: bool = False,
        s1_targets: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V1) and (B, T, V2) of the bar after each of (B, T).

        The fine token is conditioned on `s1_targets` (B, T) when teacher forcing, else on a coarse token
        sampled with `generator`. `padding_mask` (B, T) is true where a position holds nothing.
        """
        hidden = self.trunk(s1_ids, s2_ids, stamp, padding_mask)
        s1_logits = self.head(hidden)
        if use_teacher_forcing:
            if s1_targets is None:
                raise ValueError(
                    "teacher forcing needs s1_targets (B, T), found none: pass the next coarse tokens."
                )
            siblings = s1_targets
        else:
            siblings = draw_tokens(s1_logits.detach(), generator)
        return s1_logits, self.decode_s2(hidden, siblings, padding_mask)

    def trunk(
        self, s1_ids: Tensor, s2_ids: Tensor, stamp: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """State (B, T, D) after each bar, from which both tokens of the next bar are read."""
        x = self.embedding(s1_ids, s2_ids)
        if stamp is not None:
            x = x + self.time_emb(stamp)
        x = self.token_drop(x)
        angles = cast(TransformerBlock, self.transformer[0]).self_attn.rotary(x.shape[1])
        for block in self.transformer:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, padding_mask, use_reentrant=False)
            else:
                x = block(x, angles, padding_mask)
        return cast(Tensor, self.norm(x))

    def decode_s1(
        self, s1_ids: Tensor, s2_ids: Tensor, stamp: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Coarse logits (B, T, V1) and the state (B, T, D) that `decode_s2` takes."""
        hidden = self.trunk(s1_ids, s2_ids, stamp, padding_mask)
        return self.head(hidden), hidden

    def decode_s2(
        self,
        context: Tensor,
        s1_ids: Tensor,
        padding_mask: Tensor | None = None,
        *,
        s2_decode: S2Decode = "trained",
    ) -> Tensor:
        """Fine logits (B, Q, V2) of the last Q bars of `context` (B, T, D), given their coarse tokens (B, Q).

        "upstream" is what upstream computes in evaluation: with one query nothing is rotated, with T
        queries all is and nothing is masked.
        """
        trained = s2_decode == "trained"
        if not trained and s1_ids.shape[1] not in (1, context.shape[1]):
            raise ValueError(
                f'"upstream" decodes 1 or all of {context.shape[1]}, found {s1_ids.shape[1]}: use "trained".'
            )
        conditioned = self.dep_layer(
            context,
            self.embedding.emb_s1(s1_ids),
            causal=trained,
            rotate=trained or s1_ids.shape[1] == context.shape[1],
            padding=padding_mask,
        )
        return self.head.cond_forward(conditioned)


def draw_tokens(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per row of logits, by inverting its distribution: one random number, not one per token."""
    reached = logits.float().softmax(dim=-1).cumsum(dim=-1)
    shape = (*logits.shape[:-1], 1)
    uniforms = torch.rand(shape, generator=generator, device=logits.device) * reached[..., -1:]
    drawn = torch.searchsorted(reached, uniforms, right=True)[..., 0]
    return drawn.clamp_(max=logits.shape[-1] - 1)
