"""The tokenizer: a bar becomes a coarse and a fine token, and tokens become a bar.

B batch, T bars, F features, D width, K bits.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kronos_model.config import TokenizerConfig
from kronos_model.layers import Linear, TransformerBlock
from kronos_model.pretrained import Pretrained
from kronos_model.quantizer import BinaryQuantizer

__all__ = ["KronosTokenizer", "TokenizerOutput"]


class TokenizerOutput(NamedTuple):
    """What training needs, in upstream's order."""

    reconstructions: tuple[Tensor, Tensor]
    """Bars from the coarse token alone and from both, (B, T, F) each."""
    bsq_loss: Tensor
    """The quantiser's loss, a scalar."""
    quantized: Tensor
    """Codes, (B, T, K); gradients pass straight through."""
    indices: Tensor
    """Whole tokens, (B, T) int64; `KronosTokenizer.split` gives the halves."""


class KronosTokenizer(Pretrained[TokenizerConfig]):
    """Causal encoder, binary spherical quantiser, causal decoder."""

    config_class = TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        bits = config.s1_bits + config.s2_bits
        self.embed = Linear(config.d_in, config.d_model)
        self.head = Linear(config.d_model, config.d_in)
        self.encoder = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_enc_layers - 1))
        self.decoder = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_dec_layers - 1))
        self.quant_embed = Linear(config.d_model, bits)
        self.post_quant_embed_pre = Linear(config.s1_bits, config.d_model)
        self.post_quant_embed = Linear(bits, config.d_model)
        self.tokenizer = BinaryQuantizer(config)

    def forward(self, x: Tensor) -> TokenizerOutput:
        """Reconstruct normalised bars (B, T, F) through their tokens, for the training loss.

        The decoder takes both sets of codes as one batch.
        """
        quantised = self.tokenizer(self._latent(x))
        coarse = self.post_quant_embed_pre(quantised.codes[..., : self.config.s1_bits])
        full = self.post_quant_embed(quantised.codes)
        from_coarse, from_both = self._bars(torch.cat([coarse, full])).chunk(2)
        return TokenizerOutput((from_coarse, from_both), quantised.loss, quantised.codes, quantised.indices)

    def encode(self, x: Tensor, half: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Whole tokens (B, T) of normalised bars (B, T, F), or with `half` the coarse and the fine ones."""
        s1_ids, s2_ids = self.encode_halves(x)
        return (s1_ids, s2_ids) if half else self.tokenizer.join(s1_ids, s2_ids)

    def encode_halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine tokens, (B, T) int64 each, of normalised bars (B, T, F)."""
        return self.tokenizer.encode(self._latent(x))

    def decode(self, x: Tensor | Sequence[Tensor], half: bool = False, *, last: int | None = None) -> Tensor:
        """Normalised bars of whole tokens (B, T), or with `half` of both halves; `last` keeps that many."""
        s1_ids, s2_ids = cast(Sequence[Tensor], x) if half else self.split(cast(Tensor, x))
        codes = self.tokenizer.decode(s1_ids, s2_ids).to(self.post_quant_embed.weight.dtype)
        return self._bars(self.post_quant_embed(codes), last=last)

    def split(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine tokens of whole ones."""
        return self.tokenizer.split(indices)

    def _latent(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.quant_embed(_through(self.encoder, self.embed(x))))

    def _bars(self, x: Tensor, *, last: int | None = None) -> Tensor:
        hidden = _through(self.decoder, x)
        return cast(Tensor, self.head(hidden if last is None else hidden[:, hidden.shape[1] - last :]))


def _through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    angles = None
    for block in blocks:
        angles = angles or cast(TransformerBlock, block).self_attn.rotary(x.shape[1])
        x = block(x, angles)
    return x
