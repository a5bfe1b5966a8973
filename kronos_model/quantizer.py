"""Binary spherical quantisation (Zhao et al. 2024, arXiv 2406.07548): a latent becomes its direction's signs.

B batch, T bars, K bits (the coarse token's bits first).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kronos_model.config import TokenizerConfig

__all__ = ["BinaryQuantizer", "Quantised"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """A quantised latent and what training needs from it."""

    codes: Tensor
    """Points on the sphere, (B, T, K), values +-1/sqrt(K); gradients pass straight through to the latent."""
    loss: Tensor
    """Commitment loss plus weighted entropies, a scalar."""
    indices: Tensor
    """Whole token, (B, T) int64; bit i is worth 2^i, so the coarse token is the low s1_bits."""


class _Codebook(nn.Module):
    """Upstream's two buffers under its checkpoint keys; nothing reads them."""

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.tensor([2**bit for bit in reversed(range(bits))]))
        self.register_buffer("group_basis", torch.tensor([2**bit for bit in reversed(range(group_size))]))


class BinaryQuantizer(nn.Module):
    """Signs of a normalised latent, with the losses that keep the signs sure and the codebook in use."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.s1_bits, self.s2_bits = config.s1_bits, config.s2_bits
        self.bits = config.s1_bits + config.s2_bits
        self.scale = self.bits**-0.5
        self.beta, self.gamma0, self.gamma, self.zeta = config.beta, config.gamma0, config.gamma, config.zeta
        self.bsq = _Codebook(self.bits, config.group_size)

    def forward(self, latent: Tensor) -> Quantised:
        z = F.normalize(latent, dim=-1)
        signs = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        codes = (z + (signs - z).detach()) * self.scale
        commitment = (codes.detach() - z).square().sum(dim=-1).mean()
        loss = self.beta * commitment + self.zeta * self._entropy_penalty(z)
        return Quantised(codes=codes, loss=loss, indices=_number(z > 0))

    def encode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine token of each latent; normalising would not change a sign, so it is left out."""
        bits = latent > 0
        return _number(bits[..., : self.s1_bits]), _number(bits[..., self.s1_bits :])

    def decode(self, s1_ids: Tensor, s2_ids: Tensor) -> Tensor:
        """Codes (B, T, K) of tokens (B, T)."""
        bits = torch.cat([_bits(s1_ids, self.s1_bits), _bits(s2_ids, self.s2_bits)], dim=-1)
        codes: Tensor = (bits.float() * 2 - 1) * self.scale
        return codes

    def split(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine part of whole tokens."""
        return indices & (2**self.s1_bits - 1), indices >> self.s1_bits

    def join(self, s1_ids: Tensor, s2_ids: Tensor) -> Tensor:
        """Inverse of `split`."""
        return s1_ids | (s2_ids << self.s1_bits)

    def _entropy_penalty(self, z: Tensor) -> Tensor:
        """Entropy per bar (low: sure signs) minus entropy of the codebook (high: all codes in use).

        Bits count as independent in both, as in upstream's code: there too `group_size` does not enter.
        """
        minus = torch.sigmoid(-4 * z * self.scale)  # probability that a bit is -1
        sides = torch.stack([minus, 1 - minus], dim=-1)  # (B, T, K, 2)
        per_bar = _entropy(sides).sum(dim=-1).mean()
        codebook = _entropy(sides.flatten(0, -3).mean(dim=0)).sum()
        return self.gamma0 * per_bar - self.gamma * codebook


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * torch.log(probabilities + 1e-8)).sum(dim=-1)


def _number(bits: Tensor) -> Tensor:
    weights = 2 ** torch.arange(bits.shape[-1], device=bits.device)
    return (bits * weights).sum(dim=-1)


def _bits(numbers: Tensor, count: int) -> Tensor:
    return (numbers.unsqueeze(-1) >> torch.arange(count, device=numbers.device)) & 1
