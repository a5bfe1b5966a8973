"""Norms and rotations against their formulas, gradients included."""

import torch

from kronos_model.layers import RMSNorm, _rotated
from tests.kronos_model.test_kernels import alike, random, with_gradients


def test_norms_and_rotations_are_what_their_formulas_say() -> None:
    x, norm = random(3, 5, 16), RMSNorm(16)
    norm.weight.data = random(16, seed=1)
    by_hand = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight  # noqa: E731
    alike(with_gradients(norm, x), with_gradients(by_hand, x))

    angles = random(5, 8, seed=2)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1)) * torch.exp(1j * angles)
    both = angles.repeat(1, 2)
    ours, gradient = with_gradients(lambda x: _rotated(x, both.cos(), both.sin()), x)
    alike([ours], [torch.cat([turned.real, turned.imag], dim=-1)])
    alike([gradient.norm(dim=-1)], [random(3, 5, 16, seed=9).norm(dim=-1)])  # a rotation keeps lengths
    alike([(gradient * x).sum(-1)], [(ours * random(3, 5, 16, seed=9)).sum(-1)])  # and is its own adjoint
