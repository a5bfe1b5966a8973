"""Which tokenizers stage 2 may start from."""

import json

import pytest

from kronos_model.errors import ModelError
from kronos_model.evaluation.tokenizer_gate import TokenizerQuality, judge_tokenizer, read_quality


def quality(loss: float, coarse: float = 0.9, fine: float = 0.8) -> TokenizerQuality:
    return TokenizerQuality(loss=loss, coarse_use=coarse, fine_use=fine)


@pytest.mark.parametrize(
    ("after", "use", "reason"),
    [
        (quality(0.004), True, "the fine-tuned tokenizer is used: reconstruction error 0.00500 -> 0.00400"),
        (quality(0.005), False, "not better, reconstruction error 0.00500 -> 0.00500"),
        (quality(0.006), False, "the base tokenizer is used"),
        (quality(float("nan")), False, "the base tokenizer is used"),
        (
            quality(0.004, coarse=0.8),
            False,
            "coarse codes in use fall from 90.0 % to 80.0 % (it may lose 10 %",
        ),
        (quality(0.004, fine=0.7), False, "fine codes in use fall from 80.0 % to 70.0 %"),
        (quality(0.004, coarse=0.82, fine=0.73), True, "codes in use 82.0 % coarse, 73.0 % fine"),
    ],
)
def test_a_tokenizer_is_used_when_it_reconstructs_better_and_keeps_its_codes(after, use, reason):
    decision = judge_tokenizer(quality(0.005), after, codebook_drop=0.1)
    assert decision.use is use
    assert reason in decision.reason


def test_the_quality_is_what_training_measured_on_validation_windows(tmp_path):
    lines = [
        {"phase": "train", "step": 4, "loss": 9.0},
        {"phase": "validation", "step": 0, "loss": 0.5, "coarse_codebook_use": 0.9, "fine_codebook_use": 0.8},
        {"phase": "validation", "step": 4, "loss": 0.4, "coarse_codebook_use": 0.7, "fine_codebook_use": 0.6},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_quality(tmp_path, 0) == quality(0.5)
    assert read_quality(tmp_path, 4) == quality(0.4, 0.7, 0.6)
    with pytest.raises(ModelError, match="expected a validation of the tokenizer at step 8"):
        read_quality(tmp_path, 8)
