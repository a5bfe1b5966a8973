"""FLOPs by our formulas against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kronos_model import kernels
from kronos_model.accounting import Accounting, device_peak, forward_flops, known_peak, training_flops
from kronos_model.config import PRESETS
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer

LENGTH = 32


@pytest.mark.parametrize("name", ["tiny", "mini"])
@pytest.mark.parametrize("part", ["predictor", "tokenizer"])
def test_flops_are_what_torch_counts(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_onednn", lambda: False)  # torch counts its own products alone
    preset = PRESETS[name]
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            if part == "predictor":
                config, out = preset.predictor, Kronos(preset.predictor)(ids, ids)[1]
            else:
                config = preset.tokenizer
                out = torch.cat(KronosTokenizer(config)(torch.zeros(2, LENGTH, config.d_in)).reconstructions)
        counted = forward.get_total_flops()
        assert counted == pytest.approx(2 * LENGTH * forward_flops(config, LENGTH), rel=1e-9)
    assert out.requires_grad
    assert training_flops(config, LENGTH) == 3 * forward_flops(config, LENGTH)


def test_utilisation_is_the_share_of_the_peak() -> None:
    told = Accounting(tokens_per_window=100, flops_per_token=5.0, peak=10_000.0).speed(8, 2.0)
    assert told == {"tokens_per_s": 400.0, "flops_per_token": 5.0, "mfu": 0.2}


def test_a_listed_gpu_has_its_makers_peak_and_a_cpu_is_measured() -> None:
    assert known_peak("NVIDIA H200", bfloat16=True) == 989e12
    assert known_peak("NVIDIA A100-SXM4-80GB", bfloat16=False) == 19.5e12
    assert known_peak("Some GPU", bfloat16=True) is None
    assert device_peak(torch.device("cpu"), bfloat16=False) > 1e8
