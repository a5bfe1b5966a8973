"""Drawing tokens, and growing paths from them."""

import pytest
import torch
from torch import Tensor

from kronos_model.config import PRESETS
from kronos_model.errors import MismatchedPair
from kronos_model.predictor import Kronos
from kronos_model.sampling import PathSampler, SamplingConfig, draw, filter_logits
from kronos_model.tokenizer import KronosTokenizer

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def models() -> tuple[KronosTokenizer, Kronos]:
    torch.manual_seed(0)
    return KronosTokenizer(TINY.tokenizer).eval(), Kronos(TINY.predictor).eval()


def naive_kept(logits: list[float], *, temperature: float, top_k: int, top_p: float) -> set[int]:
    """Which tokens may be drawn, one by one."""
    weights = torch.tensor(logits, dtype=torch.float64).div(temperature).exp().tolist()
    ranked = sorted(range(len(weights)), key=lambda i: -weights[i])
    ranked = ranked[:top_k] if top_k else ranked
    total, reached, kept = sum(weights[i] for i in ranked), 0.0, set()
    for token in ranked:
        if kept and reached / total > top_p:
            break
        kept.add(token)
        reached += weights[token]
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 3, 10])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_temperature_top_k_and_top_p_compose(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(6, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    filtered = filter_logits(logits, config)
    for row, kept in zip(logits.tolist(), filtered.isfinite(), strict=True):
        expected = naive_kept(row, temperature=temperature, top_k=top_k, top_p=top_p)
        assert set(kept.nonzero()[:, 0].tolist()) == expected
    survivors = filtered.isfinite()
    torch.testing.assert_close(filtered[survivors], (logits / temperature)[survivors])


def test_none_switches_a_filter_off() -> None:
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(filter_logits(logits, SamplingConfig(top_k=None, top_p=None)), logits)


def test_filtering_leaves_the_logits_alone() -> None:
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    copy = logits.clone()
    filter_logits(logits, SamplingConfig(top_k=3, top_p=0.5))
    assert torch.equal(logits, copy)


def test_draws_have_the_filtered_distribution() -> None:
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    config = SamplingConfig(temperature=1.5, top_k=5, top_p=0.9)
    count = 200_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(3))
    tokens = draw(logits.expand(count, -1), uniforms, config)
    share = torch.bincount(tokens, minlength=8) / count
    expected = filter_logits(logits, config)[0].softmax(dim=-1)
    assert (expected == 0).any()
    assert (share[expected == 0] == 0).all()
    torch.testing.assert_close(share.double(), expected, atol=5e-3, rtol=0)


def test_the_largest_and_smallest_random_numbers_draw_tokens_that_may_be_drawn() -> None:
    logits = torch.full((2, 1024), -30.0)
    logits[:, 500:510] = 0.0
    tokens = draw(logits, torch.tensor([0.0, 1 - 2**-24]), SamplingConfig(top_k=10))
    assert tokens.tolist() == [500, 509]


@pytest.mark.parametrize("config", [SamplingConfig(temperature=0), SamplingConfig(top_k=1)])
def test_greedy_is_the_likeliest_token(config: SamplingConfig) -> None:
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(logits, torch.full((5,), 0.999), config), logits.argmax(dim=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected at least 0, found -1.0; raise it"),
        ({"top_k": -1}, "top_k: expected at least 0 or empty, found -1; raise it"),
        ({"top_p": 0.0}, "top_p: expected above 0 and at most 1 or empty, found 0.0; raise it"),
        ({"samples": 0}, "samples: expected at least 1, found 0; raise it"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**change)


def paths(
    models: tuple[KronosTokenizer, Kronos],
    *,
    seed: int = 0,
    series: slice = slice(None),
    horizon: int = 6,
    **settings,
) -> Tensor:
    """Paths (B, S, H, 6) of up to three series of 20 bars."""
    draw_bars = torch.Generator().manual_seed(1)
    context = torch.randn(3, 20, 6, generator=draw_bars).cumsum(dim=1).div(3).clamp(-5, 5)
    hours = torch.arange(20 + horizon)
    stamps = torch.stack([hours * 0, hours % 24, hours // 24, hours // 24 + 1, hours * 0 + 1], dim=-1)
    stamps = stamps.expand(3, -1, -1).to(torch.int8)
    max_context = settings.pop("max_context", 512)
    generator = settings.pop("generator", None) or torch.Generator().manual_seed(seed)
    config = SamplingConfig(samples=4, **settings)
    return PathSampler(*models, precision=config.precision).paths(
        context[series],
        stamps[series, :20],
        stamps[series, 20:],
        config=config,
        generator=generator,
        max_context=max_context,
    )


def test_a_seed_gives_the_same_paths_and_another_seed_others(models) -> None:
    first = paths(models, seed=1)
    assert first.shape == (3, 4, 6, 6)
    assert torch.equal(first, paths(models, seed=1))
    assert not torch.equal(first, paths(models, seed=2))
    assert len({tuple(path.flatten().tolist()) for path in first[0]}) == 4


@pytest.mark.parametrize("max_context", [512, 22], ids=["growing", "sliding"])
def test_rows_at_once_do_not_change_the_paths(models, max_context: int) -> None:
    whole = paths(models, rows=100, max_context=max_context)
    for rows in (1, 3, 5):
        torch.testing.assert_close(
            paths(models, rows=rows, max_context=max_context), whole, atol=1e-5, rtol=0
        )


def test_a_generator_per_series_makes_it_independent_of_its_batch(models) -> None:
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = paths(models, generator=seeded(10, 11, 12))
    alone = paths(models, generator=seeded(11), series=slice(1, 2))
    assert alone.shape == (1, 4, 6, 6)
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="expected one generator or 3, one per series, found 2"):
        paths(models, generator=seeded(1, 2))


def test_dropout_is_off_and_the_mode_is_given_back(models) -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"].predictor.to_dict() | {"ffn_dropout_p": 0.5, "token_dropout_p": 0.5}
    predictor = Kronos(type(PRESETS["tiny"].predictor)(**config)).train()
    first = paths((models[0], predictor))
    assert predictor.training
    assert torch.equal(first, paths((models[0], predictor)))


def test_tokens_are_the_model_s_own_distribution(models) -> None:
    """The first new bar, drawn many times, against the chain rule on full logits."""
    tokenizer, predictor = models
    context = torch.randn(1, 10, 6, generator=torch.Generator().manual_seed(4))
    stamps = torch.ones(1, 11, 5, dtype=torch.int8)
    found = PathSampler(tokenizer, predictor).paths(
        context,
        stamps[:, :10],
        stamps[:, 10:],
        config=SamplingConfig(samples=4000, rows=4000),
        generator=torch.Generator().manual_seed(5),
        max_context=512,
    )
    with torch.no_grad():
        s1, s2 = tokenizer.encode_halves(context)
        logits, hidden = predictor.decode_s1(s1, s2, stamps[:, :10])
        coarse = logits[0, -1].softmax(dim=-1)
        vocabulary = torch.arange(64)
        fine = predictor.decode_s2(hidden.expand(64, -1, -1), vocabulary[:, None])[:, -1].softmax(dim=-1)
        joint = coarse[:, None] * fine  # (V1, V2)
        pairs = [ids.flatten() for ids in torch.meshgrid(vocabulary, vocabulary, indexing="ij")]
        whole = [
            torch.cat([ids.expand(4096, -1), new[:, None]], dim=1)
            for ids, new in zip((s1, s2), pairs, strict=True)
        ]
        bars = tokenizer.decode(whole, half=True, last=1)[:, 0]
    expected = (joint.flatten()[:, None] * bars).sum(dim=0)
    spread = ((joint.flatten()[:, None] * bars.square()).sum(dim=0) - expected.square()).sqrt()
    assert ((found[0, :, 0].mean(dim=0) - expected).abs() < 4 * spread / 4000**0.5).all()


def test_a_horizon_that_leaves_no_context_is_refused(models) -> None:
    with pytest.raises(ValueError, match=r"the horizon must be in 1\.\.5, below max_context, found 6"):
        paths(models, max_context=6)


def test_tokens_of_another_size_are_refused(models) -> None:
    torch.manual_seed(0)
    other = Kronos(type(TINY.predictor)(**TINY.predictor.to_dict() | {"s1_bits": 7}))
    with pytest.raises(
        MismatchedPair, match=r"the predictor reads tokens of 7\+6 bits, the tokenizer makes 6\+6"
    ):
        paths((models[0], other))


def test_progress_counts_every_bar(models) -> None:
    seen: list[tuple[int, int]] = []
    context, stamps = torch.zeros(2, 5, 6), torch.ones(2, 8, 5)
    PathSampler(*models).paths(
        context,
        stamps[:, :5],
        stamps[:, 5:],
        config=SamplingConfig(samples=3, rows=4),
        generator=torch.Generator(),
        max_context=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == [3, 6, 9, 12, 15, 18]
