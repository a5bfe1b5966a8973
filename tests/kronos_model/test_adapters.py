"""Adapters and frozen layers: what trains, what stays, and what upstream loads."""

import json
from pathlib import Path

import model as upstream
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kronos_model.adapters import add_adapters, freeze_bottom, merged
from kronos_model.config import PRESETS
from kronos_model.fit import Interrupted
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.train import run_job
from tests.support.training import Ground, make_ground, read_metrics


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("adapters"), rows=200, dropout=0.1)


def predictor() -> Kronos:
    torch.manual_seed(1)
    return Kronos(PRESETS["tiny"].predictor)


def logits(model: torch.nn.Module) -> Tensor:
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        return model.decode_s2(model.decode_s1(ids, ids)[1], ids)


def test_an_adapter_changes_nothing_until_it_has_learned() -> None:
    plain, adapted = predictor().eval(), predictor().eval()
    add_adapters(adapted, rank=4, alpha=8.0, targets="all", seed=0)
    assert torch.equal(logits(plain), logits(adapted))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".adapter." in name for name in trained)


def test_merged_weights_compute_what_the_adapters_did_and_fit_upstream(tmp_path: Path) -> None:
    adapted = predictor().eval()
    add_adapters(adapted, rank=3, alpha=6.0, targets="all", seed=0)
    torch.manual_seed(4)
    for name, parameter in adapted.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(parameter, std=0.1)
    single = merged(adapted)
    torch.testing.assert_close(logits(single), logits(adapted), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(single), logits(predictor().eval()), atol=1e-2)
    single.save_pretrained(tmp_path / "merged")
    theirs = upstream.Kronos.from_pretrained(str(tmp_path / "merged")).eval()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode_s1(ids, ids)[0], single.decode_s1(ids, ids)[0])


@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_only_the_chosen_projections_get_adapters(targets: str) -> None:
    model = predictor()
    add_adapters(model, rank=2, alpha=2.0, targets=targets, seed=0)
    found = {name.rsplit(".", 3)[-3] for name, _ in model.named_parameters() if ".adapter." in name}
    assert found == ({"qkv_proj", "out_proj"} if targets == "attention" else {"w13", "w2"})


def test_frozen_layers_keep_their_weights_and_the_rest_learns(ground: Ground) -> None:
    job = ground.job("frozen", "predictor", epochs=1, frozen_layers=2)
    run_job(job)
    best, begun = (
        load_file(folder / "model.safetensors") for folder in (job / "best", ground.pair.predictor)
    )
    changed = {name for name in best if not torch.equal(best[name], begun[name])}
    below = ("embedding.", "time_emb.", "transformer.0.", "transformer.1.")
    assert changed == {name for name in best if not name.startswith(below) and "inv_freq" not in name}
    with pytest.raises(ValueError, match=r"frozen_layers: expected at most 3.*found 4"):
        freeze_bottom(predictor(), 4)
    freeze_bottom(KronosTokenizer(PRESETS["tiny"].tokenizer), 1)


def test_a_job_with_adapters_resumes_bit_for_bit_and_its_best_weights_fit_upstream(ground: Ground) -> None:
    settings = {"epochs": 2, "steps_per_epoch": 4, "lora_rank": 4, "lora_targets": "all"}
    calm, broken = (ground.job(name, "predictor", **settings) for name in ("calm", "broken"))
    run_job(calm)
    asked = iter([False] * 12)
    with pytest.raises(Interrupted):
        run_job(broken, stopping=lambda: next(asked, True))
    run_job(broken)
    ours, theirs = (load_file(job / "checkpoint" / "tensors.safetensors") for job in (calm, broken))
    assert any(".adapter." in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_metrics(calm) == read_metrics(broken)
    result = json.loads((calm / "result.json").read_text())
    assert result["best_validation_loss"] < result["initial_validation_loss"]
    assert Kronos.from_pretrained(calm / "best").config
    upstream.Kronos.from_pretrained(str(calm / "best"))
