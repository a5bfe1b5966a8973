"""Who sees whom: causality, padding and positions, in training as in evaluation."""

import pytest
import torch
from model.module import FixedEmbedding
from torch import Tensor

from kronos_model.config import PRESETS, PredictorConfig
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer

TINY = PRESETS["tiny"]
LENGTH = 24


@pytest.fixture(scope="module")
def predictor() -> Kronos:
    torch.manual_seed(0)
    return Kronos(TINY.predictor).eval()


def inputs(seed: int = 1, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    s1, s2 = (torch.randint(0, 64, (batch, LENGTH), generator=draw) for _ in range(2))
    stamp = torch.stack(
        [torch.randint(0, size, (batch, LENGTH), generator=draw) for size in (60, 24, 7, 32, 13)], dim=-1
    )
    return s1, s2, stamp


@pytest.mark.parametrize("training", [True, False])
def test_a_later_bar_changes_no_earlier_logit(predictor: Kronos, training: bool) -> None:
    s1, s2, stamp = inputs()
    other_s1, other_s2, other_stamp = inputs(seed=2)
    cut = 15
    predictor.train(training)
    with torch.no_grad():
        kept = predictor(s1, s2, stamp, use_teacher_forcing=True, s1_targets=s1)
        pairs = ((s1, other_s1), (s2, other_s2), (stamp, other_stamp))
        later = [torch.cat([a[:, :cut], b[:, cut:]], dim=1) for a, b in pairs]
        changed = predictor(*later, use_teacher_forcing=True, s1_targets=later[0])
    predictor.eval()
    for before, after in zip(kept, changed, strict=True):
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.allclose(before[:, cut:], after[:, cut:])


def test_training_and_evaluation_agree_without_dropout(predictor: Kronos) -> None:
    s1, s2, stamp = inputs()
    with torch.no_grad():
        evaluated = predictor.eval()(s1, s2, stamp, use_teacher_forcing=True, s1_targets=s1)
        trained = predictor.train()(s1, s2, stamp, use_teacher_forcing=True, s1_targets=s1)
    predictor.eval()
    for before, after in zip(evaluated, trained, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("training", [True, False])
def test_the_tokenizer_reads_no_later_bar(training: bool) -> None:
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(TINY.tokenizer).train(training)
    bars = torch.randn(2, LENGTH, 6)
    later = torch.cat([bars[:, :15], torch.randn(2, LENGTH - 15, 6)], dim=1)
    with torch.no_grad():
        for before, after in zip(
            tokenizer(bars).reconstructions, tokenizer(later).reconstructions, strict=True
        ):
            assert torch.equal(before[:, :15], after[:, :15])


@pytest.mark.parametrize("queries", [1, 5, LENGTH])
def test_decoding_the_last_bars_is_what_training_computes_there(predictor: Kronos, queries: int) -> None:
    s1, s2, stamp = inputs()
    targets = s1.roll(-1, dims=1)
    with torch.no_grad():
        _, whole = predictor(s1, s2, stamp, use_teacher_forcing=True, s1_targets=targets)
        _, hidden = predictor.decode_s1(s1, s2, stamp)
        tail = predictor.decode_s2(hidden, targets[:, -queries:], s2_decode="trained")
    torch.testing.assert_close(tail, whole[:, -queries:], atol=1e-6, rtol=0)


def test_upstream_decoding_differs_from_the_trained_one(predictor: Kronos) -> None:
    s1, s2, stamp = inputs()
    with torch.no_grad():
        _, hidden = predictor.decode_s1(s1, s2, stamp)
        ways = [predictor.decode_s2(hidden, s1[:, -1:], s2_decode=way) for way in ("trained", "upstream")]
    assert (ways[0] - ways[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match='"upstream" decodes 1 or all of 24, found 5'):
        predictor.decode_s2(hidden, s1[:, -5:], s2_decode="upstream")


def test_padding_on_the_left_changes_nothing_behind_it(predictor: Kronos) -> None:
    s1, s2, stamp = inputs()
    pad = 7
    padding = torch.arange(LENGTH).expand(2, -1) < pad
    with torch.no_grad():
        padded = predictor(s1, s2, stamp, padding, True, s1)
        short = predictor(s1[:, pad:], s2[:, pad:], stamp[:, pad:], None, True, s1[:, pad:])
    for with_padding, without in zip(padded, short, strict=True):
        assert with_padding.isfinite().all()
        torch.testing.assert_close(
            with_padding[:, pad:], without, atol=1e-5, rtol=0
        )  # positions are relative


def test_sampled_siblings_follow_their_generator(predictor: Kronos) -> None:
    s1, s2, stamp = inputs()
    with torch.no_grad():
        runs = [
            predictor(s1, s2, stamp, generator=torch.Generator().manual_seed(seed))[1] for seed in (5, 5, 6)
        ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    with pytest.raises(ValueError, match="teacher forcing needs s1_targets"):
        predictor(s1, s2, stamp, use_teacher_forcing=True)


def test_half_precision_weights_keep_their_positions() -> None:
    torch.manual_seed(0)
    predictor = Kronos(TINY.predictor).eval()
    rotary = predictor.transformer[0].self_attn.rotary
    before = rotary(512)
    after = predictor.bfloat16().transformer[0].self_attn.rotary(512)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    s1, s2, stamp = inputs()
    with torch.no_grad():
        assert predictor.decode_s1(s1, s2, stamp)[0].dtype == torch.bfloat16


def test_lengths_may_alternate() -> None:
    torch.manual_seed(0)
    predictor = Kronos(TINY.predictor).eval()
    s1, s2, stamp = inputs()
    with torch.no_grad():
        first = predictor.decode_s1(s1, s2, stamp)[0]
        predictor.decode_s1(s1[:, :3], s2[:, :3], stamp[:, :3])
        assert torch.equal(predictor.decode_s1(s1, s2, stamp)[0], first)


def test_fixed_calendar_embeddings_are_neither_learned_nor_random() -> None:
    config = PredictorConfig(**{**TINY.predictor.to_dict(), "learn_te": False})
    tables = [Kronos(config).time_emb.get_submodule("minute_embed").emb.weight for _ in range(2)]
    assert torch.equal(*tables)
    assert not tables[0].requires_grad
    assert torch.equal(tables[0], FixedEmbedding(60, config.d_model).emb.weight)
