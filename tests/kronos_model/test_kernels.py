"""Our CPU kernels against what torch computes from its own building blocks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kronos_model import kernels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradient of every input for one direction."""
    leaves = [one.clone().requires_grad_() for one in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, random(*out.shape, seed=9))]


def alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("rows", "bias"), [((3, 33), True), ((2, 40), False), ((1, 1), True)])
def test_a_product_and_its_gradients_are_torch_s(rows: tuple[int, int], bias: bool) -> None:
    inputs = [random(*rows, 24), random(40, 24, seed=1), *([random(40, seed=2)] if bias else [])]
    alike(with_gradients(kernels.linear, *inputs), with_gradients(F.linear, *inputs))
    wide = [random(*rows, 40), random(24, 40, seed=1)]  # the other factor is the smaller one
    alike(with_gradients(kernels.linear, *wide), with_gradients(F.linear, *wide))


@pytest.mark.parametrize("length", [1, 7, 256, 300], ids="{} positions".format)
def test_causal_attention_and_its_gradients_are_torch_s(length: int) -> None:
    inputs = [random(2, length, 3, 8, seed=seed).transpose(1, 2) for seed in range(3)]
    ours = with_gradients(lambda q, k, v: kernels.causal_attention(q, k, v, 0.0), *inputs)
    alike(ours, with_gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), *inputs))


@pytest.mark.parametrize("length", [1, 128, 300], ids="{} positions".format)
def test_causal_attention_in_bfloat16_is_that_of_float32_within_its_precision(length: int) -> None:
    inputs = [random(2, length, 3, 8, seed=seed).transpose(1, 2) for seed in range(3)]
    halves = [one.bfloat16() for one in inputs]
    ours = with_gradients(lambda q, k, v: kernels.causal_attention(q, k, v, 0.0), *halves)
    theirs = with_gradients(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), *inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine.float() - other).norm() / other.norm().clamp(min=1e-6)) < 0.02 or length == 1


def test_attention_with_dropped_weights_has_the_gradients_of_its_own_dropout() -> None:
    q, k, v = (random(1, 2, 300, 4, seed=seed) for seed in range(3))
    torch.manual_seed(3)
    ours = with_gradients(lambda q, k, v: kernels.causal_attention(q, k, v, 0.25), q, k, v)
    torch.manual_seed(3)
    blocks, scale = kernels._attention_drops(q.flatten(0, 1), 0.25, kernels._blocks(300))
    kept = torch.zeros(1, 2, 300, 300)
    for dropped, (first, last) in zip(blocks, kernels._blocks(300), strict=True):
        kept[0, :, first:last, :last] = (~dropped).float() * scale

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT / 2).masked_fill(torch.ones(300, 300).triu(1).bool(), -torch.inf)
        return (scores.softmax(dim=-1) * kept) @ v

    alike(ours, with_gradients(by_hand, q, k, v))


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_attention_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    dropped, scale = kernels._drawn(400_001, share)
    found, error = float(dropped.double().mean()), (share * (1 - share) / dropped.numel()) ** 0.5
    assert abs(found - share) < 5 * error
    assert scale == pytest.approx(1 / (1 - share), rel=1e-4)


def test_under_autocast_torch_chooses_the_product() -> None:
    x, weight = random(8, 24), random(40, 24, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels.linear(x, weight).dtype == torch.bfloat16
