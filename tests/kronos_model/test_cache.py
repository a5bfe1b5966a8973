"""Sampling with caches against sampling that reads everything again for every bar, and against upstream."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kronos_model import graphs, sampling
from kronos_model.config import PRESETS
from kronos_model.decoding import CachedDecoder, CachedPredictor, DecodedPrompt, Memory, Prompt
from kronos_model.forecaster import Forecaster
from kronos_model.normalise import Normaliser
from kronos_model.predictor import Kronos, S2Decode
from kronos_model.projection import projection
from kronos_model.sampling import PathSampler, SamplingConfig, draw
from kronos_model.tokenizer import KronosTokenizer

MODES: tuple[S2Decode, ...] = ("trained", "upstream")
Pair = tuple[KronosTokenizer, Kronos]


def build(name: str) -> Pair:
    torch.manual_seed(3)
    preset = PRESETS[name]
    tokenizer, predictor = KronosTokenizer(preset.tokenizer).eval(), Kronos(preset.predictor).eval()
    with torch.no_grad():  # biases start at zero and norms at one, which would hide a wrong use of them
        for parameter in predictor.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return tokenizer, predictor


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return build("tiny")


def market(series: int, bars: int, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised bars (B, C, 6), stamps (B, C, 5) and the stamps (B, H, 5) that follow."""
    context = torch.randn(series, bars, 6, generator=torch.Generator().manual_seed(1)).cumsum(dim=1).div(3)
    hours = torch.arange(bars + horizon)
    stamps = torch.stack([hours * 0, hours % 24, hours // 24 % 7, hours // 24 + 1, hours * 0 + 1], dim=-1)
    stamps = stamps.expand(series, -1, -1)
    return context.clamp(-5, 5), stamps[:, :bars], stamps[:, bars:]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.inference_mode()
def uncached_paths(
    pair: Pair,
    context: Tensor,
    stamps: Tensor,
    future: Tensor,
    *,
    config: SamplingConfig,
    generator: list[torch.Generator],
    max_context: int,
    s2_decode: S2Decode,
) -> Tensor:
    """Every bar of every sample from the whole window, with the model's own methods."""
    tokenizer, predictor = pair
    calendar = torch.cat([stamps, future], dim=1)
    paths = torch.empty(len(context), config.samples, future.shape[1], 6)
    uniforms = [torch.rand((config.samples, future.shape[1], 2), generator=one) for one in generator]
    for series, sample in product(range(len(context)), range(config.samples)):
        s1, s2 = tokenizer.encode_halves(context[series : series + 1])
        for step in range(future.shape[1]):
            window = slice(max(0, s1.shape[1] - max_context), s1.shape[1])
            logits, hidden = predictor.decode_s1(
                s1[:, window], s2[:, window], calendar[series : series + 1, window]
            )
            first, second = uniforms[series][sample, step].split(1)
            coarse = draw(logits[:, -1], first, config)[:, None]
            fine = draw(predictor.decode_s2(hidden, coarse, s2_decode=s2_decode)[:, -1], second, config)
            s1, s2 = torch.cat([s1, coarse], dim=1), torch.cat([s2, fine[:, None]], dim=1)
        tail = slice(max(0, s1.shape[1] - max_context), None)
        paths[series, sample] = tokenizer.decode((s1[:, tail], s2[:, tail]), half=True, last=future.shape[1])[
            0
        ]
    return paths


@pytest.mark.parametrize("s2_decode", MODES)
@pytest.mark.parametrize("max_context", [512, 30, 20], ids=["growing", "sliding", "longer than the context"])
def test_cached_paths_are_the_uncached_ones(tiny: Pair, max_context: int, s2_decode: S2Decode) -> None:
    arguments = {
        "config": SamplingConfig(samples=3, temperature=1.3, top_k=50, top_p=0.95),
        "max_context": max_context,
    }
    data = market(2, 24, 12)
    cached = PathSampler(*tiny, s2_decode=s2_decode).paths(*data, generator=seeded(5, 6), **arguments)
    uncached = uncached_paths(tiny, *data, generator=seeded(5, 6), s2_decode=s2_decode, **arguments)
    torch.testing.assert_close(cached, uncached, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "s2_decode"), product(("mini", "small"), MODES))
@torch.inference_mode()
def test_cached_logits_are_the_uncached_ones(name: str, s2_decode: S2Decode) -> None:
    tokenizer, predictor = build(name)
    context, stamps, future = market(2, 20, 4)
    s1, s2 = tokenizer.encode_halves(context)
    model = CachedPredictor(predictor, s2_decode=s2_decode)
    prompt = Prompt(s1, s2, stamps, torch.full((2,), 20))
    memory = Memory(model, prompt, samples=3, horizon=4)
    memory.read(prompt, future)
    added = torch.randint(0, 1024, (2, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    rows = [ids.repeat_interleave(3, dim=0) for ids in (s1, s2)]  # (R, C)
    calendar = torch.cat([stamps, future], dim=1).repeat_interleave(3, dim=0)
    for seen in range(4):
        whole = [
            torch.cat([ids, new.flatten(0, 1)[:, :seen]], dim=1) for ids, new in zip(rows, added, strict=True)
        ]
        logits, hidden = predictor.decode_s1(*whole, calendar[:, : 20 + seen])
        torch.testing.assert_close(memory.coarse_logits(), logits[:, -1], atol=1e-4, rtol=1e-4)
        coarse = added[0, :, :, seen]
        expected = predictor.decode_s2(hidden, coarse.flatten()[:, None], s2_decode=s2_decode)[:, -1]
        torch.testing.assert_close(memory.fine_logits(coarse, seen), expected, atol=1e-4, rtol=1e-4)
        memory.extend(added[..., seen : seen + 1], seen)


@torch.inference_mode()
def test_bars_read_one_by_one_or_together_leave_the_same_state(tiny: Pair) -> None:
    context, stamps, future = market(2, 16, 5)
    s1, s2 = tiny[0].encode_halves(context)
    prompt = Prompt(s1, s2, stamps, torch.tensor([16, 11]))
    added = torch.randint(0, 64, (2, 2, 3, 5), generator=torch.Generator().manual_seed(1))
    model = CachedPredictor(tiny[1], s2_decode="trained")
    logits = []
    for parts in ([1] * 5, [5], [2, 3]):
        memory = Memory(model, prompt, samples=3, horizon=5)
        memory.read(prompt, future)
        start = 0
        for bars in parts:
            memory.extend(added[..., start : start + bars], start)
            start += bars
        logits.append((memory.coarse_logits(), memory.fine_logits(added[0, :, :, 0], 5)))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_only_the_horizon_is_decoded_and_is_what_the_whole_would_give() -> None:
    tokenizer, _ = build("mini")
    prompt = [
        torch.randint(0, 1024, (2, 30), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    ]
    added = torch.randint(0, 1024, (2, 2, 3, 7), generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([30, 19])
    read = DecodedPrompt(
        CachedDecoder(tokenizer), Prompt(prompt[0], prompt[1], torch.zeros(2, 30, 5), lengths), horizon=7
    )
    found = read.bars(added)
    for series, sample in product(range(2), range(3)):
        whole = [
            torch.cat([ids[series, : lengths[series]], new[series, sample]])[None]
            for ids, new in zip(prompt, added, strict=True)
        ]
        expected = tokenizer.decode(whole, half=True, last=7)[0]
        torch.testing.assert_close(found[series, sample], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_context", [512, 26], ids=["growing", "some slide"])
def test_series_of_different_length_get_the_paths_that_they_get_alone(tiny: Pair, max_context: int) -> None:
    context, stamps, future = market(4, 24, 6)
    lengths, sampler = [24, 9, 1, 24], PathSampler(*tiny)
    arguments = {"config": SamplingConfig(samples=3, rows=7), "max_context": max_context}
    together = sampler.paths(
        context.where(torch.arange(24)[:, None] < torch.tensor(lengths)[:, None, None], 9.0),
        stamps,
        future,
        lengths=lengths,
        generator=seeded(1, 2, 3, 4),
        **arguments,
    )
    for row, length in enumerate(lengths):
        rows = slice(row, row + 1)
        alone = sampler.paths(
            context[rows, :length],
            stamps[rows, :length],
            future[rows],
            generator=seeded(row + 1),
            **arguments,
        )
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_a_forecaster_takes_series_of_different_length(tiny: Pair) -> None:
    draw_bars = np.random.default_rng(1)
    lengths, names = (40, 25), ("spot:BTCUSDT", "um:ETHUSDT")
    close = [100 * np.exp(draw_bars.normal(0, 0.01, bars).cumsum()) for bars in lengths]
    bars = [np.stack([c, c * 1.01, c * 0.99, c, c, c * c], axis=-1).astype(np.float32) for c in close]
    times = [3_600_000 * np.arange(40 - count, 40, dtype=np.int64) for count in lengths]
    future = np.tile(3_600_000 * np.arange(40, 45, dtype=np.int64), (2, 1))
    forecaster = Forecaster(*tiny, Normaliser())
    config = SamplingConfig(samples=3)
    together = forecaster.paths(bars, times, future, names, config=config, seed=1).paths
    for row in range(2):
        alone = forecaster.paths(
            bars[row][None], times[row][None], future[:1], names[row : row + 1], config=config, seed=1
        )
        np.testing.assert_allclose(together[row], alone.paths[0], rtol=1e-4)


@pytest.mark.parametrize("s2_decode", MODES)
def test_samples_that_share_a_prompt_are_distributed_as_separate_runs(
    tiny: Pair, s2_decode: S2Decode
) -> None:
    """Chi-square over tenths of the second new close, where samples already have pasts of their own."""
    count, sampler = 3000, PathSampler(*tiny, s2_decode=s2_decode)
    data = market(1, 12, 2)
    config = SamplingConfig(temperature=0.7, top_k=12, rows=count)
    together = sampler.paths(*data, config=config, samples=count, generator=seeded(1), max_context=512)[0]
    apart = sampler.paths(
        *(part.expand(count, -1, -1) for part in data),
        config=config,
        samples=1,
        generator=torch.Generator().manual_seed(2),
        max_context=512,
    )[:, 0]
    edges = torch.quantile(apart[:, 1, 3], torch.linspace(0.1, 0.9, 9))
    table = [
        torch.bincount(torch.bucketize(paths[:, 1, 3].contiguous(), edges), minlength=10)
        for paths in (together, apart)
    ]
    filled = torch.stack(table)[:, (table[0] + table[1]) > 0].numpy()
    assert filled.shape[1] >= 8
    assert stats.chi2_contingency(filled).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 30, 200])
def test_a_prepared_projection_is_the_linear_layer(dtype: torch.dtype, rows: int) -> None:
    layer = torch.nn.Linear(48, 96)
    x = torch.randn(2, rows, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = projection(layer.weight, layer.bias, dtype)(x)
        expected = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


@torch.inference_mode()
def test_half_precision_hardly_moves_the_distribution() -> None:
    tokenizer, predictor = build("mini")
    context, stamps, future = market(1, 40, 2)
    prompt = Prompt(*tokenizer.encode_halves(context), stamps, torch.tensor([40]))
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = CachedPredictor(predictor, s2_decode="trained", dtype=dtype)
        memory = Memory(model, prompt, samples=2, horizon=2)
        memory.read(prompt, future)
        memory.extend(torch.tensor([[[[3], [9]]], [[[5], [7]]]]), 0)
        logits[dtype] = memory.coarse_logits().log_softmax(dim=-1)
    exact, half = logits[torch.float32], logits[torch.bfloat16]
    divergence = (exact.exp() * (exact - half)).sum(dim=-1)
    assert 0 < divergence.max() < 1e-3


@pytest.mark.parametrize("max_context", [512, 28], ids=["growing", "sliding"])
def test_a_program_with_fixed_shapes_draws_the_same_paths(
    tiny: Pair, max_context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU replays, run step by step: twice, because the program outlives the call."""
    data, lengths = market(3, 24, 6), [24, 24, 13]
    arguments = {
        "config": SamplingConfig(samples=3, top_p=0.9),
        "lengths": lengths,
        "max_context": max_context,
    }
    plain = PathSampler(*tiny).paths(*data, generator=seeded(1, 2, 3), **arguments)

    def stepwise(step: Callable[[], object], *, rewind: Callable[[], object]) -> Callable[[], object]:
        step()
        return step

    monkeypatch.setattr(graphs, "captured", stepwise)
    monkeypatch.setattr(sampling, "accelerates", lambda device, how: how == "graph")
    sampler = PathSampler(*tiny)
    counted: list[int] = []
    for seeds in ((4, 5, 6), (1, 2, 3)):
        found = sampler.paths(
            *data, generator=seeded(*seeds), progress=lambda done, total: counted.append(done), **arguments
        )
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    assert counted[-1] == 3 * 3 * 6


@pytest.mark.gpu
@pytest.mark.parametrize("acceleration", ["off", "graph", "compile"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_draws_what_a_cpu_draws(tiny: Pair, acceleration: str, precision: str) -> None:
    data, lengths = market(3, 24, 6), [24, 24, 13]
    config = SamplingConfig(samples=3, top_p=0.9, acceleration=acceleration, precision=precision)
    here = PathSampler(*tiny).paths(
        *data,
        lengths=lengths,
        generator=seeded(1, 2, 3),
        config=SamplingConfig(samples=3, top_p=0.9),
        max_context=512,
    )
    sampler = PathSampler(*(model.cuda() for model in build("tiny")), precision=config.precision)
    for _ in range(2):
        there = sampler.paths(
            *(part.cuda() for part in data),
            lengths=lengths,
            generator=seeded(1, 2, 3),
            config=config,
            max_context=512,
        )
    assert there.isfinite().all()
    if precision == "float32":
        torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)
