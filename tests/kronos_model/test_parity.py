"""Ours against upstream's installed package, on the same seeded weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import model as upstream
import numpy as np
import pytest
import torch
from model.kronos import auto_regressive_inference
from torch import Tensor

from kronos_model.config import PRESETS
from kronos_model.features import Floor
from kronos_model.forecaster import Forecaster
from kronos_model.normalise import Normaliser
from kronos_model.predictor import Kronos
from kronos_model.sampling import PathSampler, SamplingConfig
from kronos_model.tokenizer import KronosTokenizer
from tests.support.gradients import named_gradients

NAMES = ("tiny", "mini", "small")
LENGTH = {"tiny": 64, "mini": 32, "small": 16}


@dataclass
class Sides:
    """The same weights in both implementations."""

    name: str
    tokenizer: KronosTokenizer
    predictor: Kronos
    their_tokenizer: upstream.KronosTokenizer
    their_predictor: upstream.Kronos


def build(name: str) -> Sides:
    preset = PRESETS[name]
    torch.manual_seed(7)
    tokenizer, predictor = KronosTokenizer(preset.tokenizer).eval(), Kronos(preset.predictor).eval()
    theirs = upstream.KronosTokenizer(**preset.tokenizer.to_dict()).eval()
    their_predictor = upstream.Kronos(**preset.predictor.to_dict()).eval()
    theirs.load_state_dict(tokenizer.state_dict(), strict=True)
    their_predictor.load_state_dict(predictor.state_dict(), strict=True)
    return Sides(name, tokenizer, predictor, theirs, their_predictor)


@pytest.fixture(scope="module", params=NAMES)
def sides(request: pytest.FixtureRequest) -> Sides:
    return build(request.param)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def bars(sides: Sides, length: int | None = None, batch: int = 2) -> Tensor:
    """Normalised bars of a random walk, so that tokens vary and repeat."""
    draw = torch.Generator().manual_seed(3)
    steps = torch.randn(batch, length or LENGTH[sides.name], 6, generator=draw)
    return (steps.cumsum(dim=1) / 3).clamp(-5, 5)


def stamps(length: int, batch: int = 2) -> Tensor:
    hours = torch.arange(length)
    rows = torch.stack([hours * 0, hours % 24, hours // 24 % 7, hours // 24 % 28 + 1, hours * 0 + 5], dim=-1)
    return rows.expand(batch, -1, -1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_weights_load_both_ways_under_the_same_keys(sides: Sides) -> None:
    preset = PRESETS[sides.name]
    KronosTokenizer(preset.tokenizer).load_state_dict(sides.their_tokenizer.state_dict(), strict=True)
    Kronos(preset.predictor).load_state_dict(sides.their_predictor.state_dict(), strict=True)


def test_a_fused_projection_is_what_its_parts_are_together(sides: Sides) -> None:
    own, told = sides.predictor.transformer[0], sides.predictor.state_dict()
    parts = [told[f"transformer.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(own.self_attn.qkv_proj.weight, torch.cat(parts))
    gates = [told[f"transformer.0.ffn.{part}.weight"] for part in ("w1", "w3")]
    assert torch.equal(own.ffn.w13.weight, torch.cat(gates))
    assert not [name for name in told if "qkv" in name or "w13" in name]


def test_a_missing_part_of_a_fused_projection_is_named() -> None:
    predictor = Kronos(PRESETS["tiny"].predictor)
    told = predictor.state_dict()
    del told["transformer.1.self_attn.k_proj.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*transformer\.1\.self_attn\.qkv_proj\.weight"):
        predictor.load_state_dict(told)


def test_encode_gives_the_same_tokens(sides: Sides) -> None:
    x = bars(sides)
    for ours, theirs in zip(
        sides.tokenizer.encode(x, half=True), sides.their_tokenizer.encode(x, half=True), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert len(ours.unique()) > 4
    assert torch.equal(sides.tokenizer.encode(x), sides.their_tokenizer.encode(x))


def test_decode_gives_the_same_bars(sides: Sides) -> None:
    x = bars(sides)
    halves, whole = sides.tokenizer.encode_halves(x), sides.tokenizer.encode(x)
    theirs = sides.their_tokenizer.decode(halves, half=True)
    close(sides.tokenizer.decode(halves, half=True), theirs)
    close(sides.tokenizer.decode(whole), sides.their_tokenizer.decode(whole))
    close(sides.tokenizer.decode(halves, half=True, last=5), theirs[:, -5:])


def test_the_tokenizer_reconstructs_and_scores_alike(sides: Sides) -> None:
    x = bars(sides)
    ours, theirs = sides.tokenizer(x), sides.their_tokenizer(x)
    for mine, other in zip(ours.reconstructions, theirs[0], strict=True):
        close(mine, other)
    close(ours.bsq_loss, theirs[1])
    close(ours.quantized, theirs[2])
    assert torch.equal(ours.indices, theirs[3])


@torch.enable_grad()
def test_the_tokenizer_learns_through_the_same_gradients(sides: Sides) -> None:
    x = bars(sides, length=16)
    gradients = []
    for tokenizer in (sides.tokenizer, sides.their_tokenizer):
        (coarse, full), quantiser_loss, *_ = tokenizer(x)
        loss = (coarse - x).square().mean() + (full - x).square().mean() + quantiser_loss
        tokenizer.zero_grad()
        loss.backward()
        gradients.append(named_gradients(tokenizer))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)
    assert gradients[0]["embed.weight"].abs().max() > 0  # reached through the codes


def test_teacher_forced_logits_are_the_same(sides: Sides) -> None:
    s1, s2 = sides.tokenizer.encode_halves(bars(sides))
    stamp, targets = stamps(s1.shape[1]), s1.roll(-1, dims=1)
    ours = sides.predictor(s1, s2, stamp, use_teacher_forcing=True, s1_targets=targets)
    # upstream's evaluation lets the fine token see the future; its training does not
    sides.their_predictor.dep_layer.train()
    theirs = sides.their_predictor(s1, s2, stamp, use_teacher_forcing=True, s1_targets=targets)
    sides.their_predictor.dep_layer.eval()
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other)


def test_upstream_decoding_is_reproduced(sides: Sides) -> None:
    s1, s2 = sides.tokenizer.encode_halves(bars(sides))
    stamp = stamps(s1.shape[1])
    logits, hidden = sides.predictor.decode_s1(s1, s2, stamp)
    their_logits, their_hidden = sides.their_predictor.decode_s1(s1, s2, stamp)
    close(logits, their_logits)
    close(hidden, their_hidden)
    chosen = logits[:, -1:].argmax(dim=-1)
    for siblings in (chosen, s1):  # one query, and all of them
        theirs = sides.their_predictor.decode_s2(their_hidden, siblings)[:, -siblings.shape[1] :]
        close(sides.predictor.decode_s2(hidden, siblings, s2_decode="upstream"), theirs)


@pytest.mark.parametrize("max_context", [512, 20], ids=["growing", "sliding"])
def test_greedy_paths_are_upstream_s(sides: Sides, max_context: int) -> None:
    length, horizon = LENGTH[sides.name], 24
    x, calendar = bars(sides), stamps(length + horizon)
    if max_context < horizon:
        horizon, calendar = 12, calendar[:, : length + 12]
    theirs = auto_regressive_inference(
        sides.their_tokenizer,
        sides.their_predictor,
        x,
        calendar[:, :length],
        calendar[:, length:],
        max_context,
        horizon,
        top_k=1,
        top_p=1.0,
        sample_count=1,
    )[:, -horizon:]
    ours = PathSampler(sides.tokenizer, sides.predictor, s2_decode="upstream").paths(
        x,
        calendar[:, :length],
        calendar[:, length:],
        config=SamplingConfig(top_k=1, samples=2),
        generator=torch.Generator(),
        max_context=max_context,
    )
    assert ours.shape == (2, 2, horizon, 6)
    for sample in ours.unbind(dim=1):
        close(sample, torch.from_numpy(theirs))


@pytest.mark.parametrize(("floor", "level"), [("upstream", 1e-3), ("upstream", 6e4), ("relative", 6e4)])
def test_prices_are_forecast_alike_with_upstream_s_floor_and_at_usual_prices_without(
    floor: Floor, level: float
) -> None:
    """Greedy, through KronosPredictor.predict and our Forecaster."""
    pandas = pytest.importorskip("pandas")
    sides, length, horizon = build("tiny"), 64, 12
    draw = torch.Generator().manual_seed(5)
    close = level * torch.exp(0.01 * torch.randn(length, generator=draw).cumsum(dim=0))
    bars = torch.stack(
        [close * 0.999, close * 1.004, close * 0.995, close, 9 * close, close * close], dim=-1
    ).numpy()
    times = pandas.Series(pandas.date_range("2024-06-01", periods=length + horizon, freq="1h"))
    theirs = upstream.KronosPredictor(sides.their_predictor, sides.their_tokenizer, device="cpu").predict(
        pandas.DataFrame(bars, columns=["open", "high", "low", "close", "volume", "amount"]),
        times[:length],
        times[length:],
        horizon,
        top_k=1,
        top_p=1.0,
        verbose=False,
    )
    opened = times.to_numpy().astype("datetime64[ms]").astype("int64")[None]
    ours = Forecaster(sides.tokenizer, sides.predictor, Normaliser(floor=floor), s2_decode="upstream").paths(
        bars[None],
        opened[:, :length],
        opened[:, length:],
        ["um:DOGEUSDT"],
        config=SamplingConfig(top_k=1, samples=1),
        seed=0,
    )
    np.testing.assert_allclose(ours.paths[0, 0, :, [0, 3]].T, theirs[["open", "close"]], rtol=1e-5)
    assert theirs["close"].nunique() > 3


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_what_we_save_upstream_loads_and_the_other_way(name: str, tmp_path: Path) -> None:
    sides = build(name)
    sides.tokenizer.save_pretrained(tmp_path / "ours" / "tokenizer")
    sides.predictor.save_pretrained(tmp_path / "ours" / "predictor")
    sides.their_tokenizer.save_pretrained(tmp_path / "theirs" / "tokenizer")
    sides.their_predictor.save_pretrained(tmp_path / "theirs" / "predictor")
    tokenizers = (
        upstream.KronosTokenizer.from_pretrained(str(tmp_path / "ours" / "tokenizer")).eval(),
        KronosTokenizer.from_pretrained(tmp_path / "theirs" / "tokenizer"),
    )
    predictors = (
        upstream.Kronos.from_pretrained(str(tmp_path / "ours" / "predictor")).eval(),
        Kronos.from_pretrained(tmp_path / "theirs" / "predictor"),
    )
    x = bars(sides)
    s1, s2 = sides.tokenizer.encode_halves(x)
    for tokenizer in tokenizers:
        assert torch.equal(tokenizer.encode(x), sides.tokenizer.encode(x))
    logits = sides.predictor.decode_s1(s1, s2, stamps(s1.shape[1]))[0]
    for predictor in predictors:
        close(predictor.decode_s1(s1, s2, stamps(s1.shape[1]))[0], logits)
    assert not predictors[1].training
    assert predictors[1].config == sides.predictor.config
