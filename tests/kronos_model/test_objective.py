"""Losses against upstream's own, and validation against plain loops."""

from typing import Any

import model as upstream
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kronos_model.objective import PredictorObjective, TokenizerObjective
from kronos_model.predictor import Kronos, draw_tokens
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.tokens import normalised, token_source
from kronos_model.windows import WindowDataset
from tests.support.gradients import named_gradients
from tests.support.training import Ground, make_ground

CPU = torch.device("cpu")
INDICES = np.array([3, 0, 11, 7])


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("objective"))


@pytest.fixture(scope="module")
def dataset(ground: Ground) -> WindowDataset:
    return WindowDataset.open(ground.dataset.path)


@pytest.fixture
def tokenizer(ground: Ground) -> KronosTokenizer:
    return KronosTokenizer.from_pretrained(ground.pair.tokenizer)


@pytest.fixture
def predictor(ground: Ground) -> Kronos:
    return Kronos.from_pretrained(ground.pair.predictor)


@pytest.fixture
def stage_two(ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer) -> PredictorObjective:
    train, validation = (
        token_source(
            dataset,
            tokenizer,
            split,
            folder=ground.dataset.path,
            digest=ground.pair.tokenizer_digest,
            draws=10**6,
            budget_mb=100,
            device=CPU,
        )
        for split in ("train", "validation")
    )
    return PredictorObjective(dataset=dataset, device=CPU, train=train, validation=validation)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def theirs(model: KronosTokenizer | Kronos) -> Any:
    """Upstream's model with the same weights."""
    kind = upstream.KronosTokenizer if isinstance(model, KronosTokenizer) else upstream.Kronos
    twin = kind(**model.config.to_dict())
    twin.load_state_dict(model.state_dict())
    return twin.train()


def test_stage_one_minimises_upstreams_loss_with_upstreams_gradients(
    dataset: WindowDataset, tokenizer: KronosTokenizer
) -> None:
    x = normalised(dataset, dataset.batch("train", INDICES), CPU)
    twin = theirs(tokenizer)
    (coarse, fine), quantizer, _, _ = twin(x)
    expected = (F.mse_loss(coarse, x) + F.mse_loss(fine, x) + quantizer) / 2
    expected.backward()

    losses = TokenizerObjective(dataset=dataset, device=CPU).losses(tokenizer.train(), INDICES, seeded())
    losses["loss"].backward()
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["quantizer_loss"], quantizer)
    ours = named_gradients(tokenizer)
    for name, gradient in named_gradients(twin).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_stage_one_gives_every_parameter_a_gradient(
    dataset: WindowDataset, tokenizer: KronosTokenizer
) -> None:
    TokenizerObjective(dataset=dataset, device=CPU).losses(tokenizer.train(), INDICES, seeded())[
        "loss"
    ].backward()
    found = named_gradients(tokenizer)
    buffers = {name for name, _ in tokenizer.named_buffers()}
    assert set(found) == tokenizer.state_dict().keys() - buffers
    assert [name for name, gradient in found.items() if not gradient.any()] == []
    assert {"embed.weight", "encoder.0.self_attn.q_proj.weight", "quant_embed.weight"} <= set(found)


def test_stage_two_minimises_upstreams_loss_with_upstreams_gradients(
    stage_two: PredictorObjective, predictor: Kronos, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = stage_two.train.batch(INDICES)
    stamps = stage_two.dataset.batch("train", INDICES).stamps
    twin = theirs(predictor)
    generator = seeded(5)  # upstream draws the same coarse tokens
    monkeypatch.setattr(torch, "multinomial", lambda p, count: draw_tokens(p.log(), generator)[:, None])
    logits = twin(tokens[:, :-1, 0], tokens[:, :-1, 1], stamps[:, :-1])
    expected, s1, s2 = twin.head.compute_loss(*logits, tokens[:, 1:, 0], tokens[:, 1:, 1])
    expected.backward()

    losses = stage_two.losses(predictor.train(), INDICES, seeded(5))
    losses["loss"].backward()
    torch.testing.assert_close(losses, {"loss": expected, "s1_loss": s1, "s2_loss": s2})
    ours = named_gradients(predictor)
    for name, gradient in named_gradients(twin).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_coarse_tokens_are_drawn_from_the_given_generator_alone(
    stage_two: PredictorObjective, predictor: Kronos
) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        float(stage_two.losses(predictor, INDICES, seeded(seed))["s2_loss"].detach()) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_predictor_validation_is_the_likelihood_of_each_window_given_the_true_coarse_token(
    stage_two: PredictorObjective, predictor: Kronos
) -> None:
    rows = []
    for index in INDICES:
        tokens = stage_two.validation.batch([index])
        stamps = stage_two.dataset.batch("validation", [index]).stamps
        s1_logits, s2_logits = predictor(
            tokens[:, :-1, 0],
            tokens[:, :-1, 1],
            stamps[:, :-1],
            use_teacher_forcing=True,
            s1_targets=tokens[:, 1:, 0],
        )
        bars = range(1, tokens.shape[1])
        s1 = [-float(s1_logits[0, bar - 1].log_softmax(-1)[tokens[0, bar, 0]]) for bar in bars]
        s2 = [-float(s2_logits[0, bar - 1].log_softmax(-1)[tokens[0, bar, 1]]) for bar in bars]
        forecast = [
            (a + b) / 2 for bar, a, b in zip(bars, s1, s2, strict=True) if bar >= stage_two.dataset.lookback
        ]
        rows.append([np.mean(s1), np.mean(s2), np.mean(forecast)])
    s1_loss, s2_loss, forecast_loss = np.mean(rows, axis=0)

    found = stage_two.summary(stage_two.tally(predictor, INDICES), len(INDICES))
    expected = {
        "loss": (s1_loss + s2_loss) / 2,
        "s1_loss": s1_loss,
        "s2_loss": s2_loss,
        "forecast_loss": forecast_loss,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["s2_sampled_loss"] != found["s2_loss"]


@torch.no_grad()
def test_validation_repeats_itself_and_leaves_the_random_numbers_alone(
    stage_two: PredictorObjective, predictor: Kronos
) -> None:
    before = torch.get_rng_state()
    first, again = (stage_two.tally(predictor, INDICES) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_tokenizer_validation_is_reconstruction_and_the_share_of_codes_in_use(
    dataset: WindowDataset, tokenizer: KronosTokenizer
) -> None:
    objective = TokenizerObjective(dataset=dataset, device=CPU)
    first, second = (objective.tally(tokenizer, part) for part in (INDICES[:1], INDICES[1:]))
    found = objective.summary({name: first[name] + second[name] for name in first}, len(INDICES))

    x = normalised(dataset, dataset.batch("validation", INDICES), CPU)
    (coarse, fine), *_ = tokenizer(x)
    s1, s2 = tokenizer.encode(x, half=True)
    errors = [float(((bars - x) ** 2).mean()) for bars in (coarse, fine)]
    expected = {
        "loss": sum(errors) / 2,
        "coarse_loss": errors[0],
        "fine_loss": errors[1],
        "coarse_codebook_use": len(np.unique(s1)) / 64,
        "fine_codebook_use": len(np.unique(s2)) / 64,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_stage_ones_quantizer_loss_is_the_mean_over_windows_whatever_the_batches(
    dataset: WindowDataset, tokenizer: KronosTokenizer
) -> None:
    objective = TokenizerObjective(dataset=dataset, device=CPU)
    with torch.no_grad():
        parts = [objective.tally(tokenizer.eval(), part) for part in (INDICES[:1], INDICES[1:])]
        sizes = [(1, INDICES[:1]), (3, INDICES[1:])]
        losses = [
            tokenizer(normalised(dataset, dataset.batch("validation", part), CPU)).bsq_loss
            for _, part in sizes
        ]
    found = objective.summary({name: parts[0][name] + parts[1][name] for name in parts[0]}, len(INDICES))
    expected = sum(size * float(loss) for (size, _), loss in zip(sizes, losses, strict=True)) / len(INDICES)
    assert found["quantizer_loss"] == pytest.approx(expected, rel=1e-6)
