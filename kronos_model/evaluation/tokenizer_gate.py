"""Whether a fine-tuned tokenizer may be used: it must reconstruct held-out windows better and use its codes no less."""

import json
from dataclasses import dataclass
from pathlib import Path

from kronos_model.errors import ModelError

__all__ = ["TokenizerDecision", "TokenizerQuality", "judge_tokenizer", "read_quality"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerQuality:
    """A tokenizer on the validation windows, which no gradient has seen."""

    loss: float
    """Mean squared reconstruction error of normalised bars, coarse and fine halves averaged."""
    coarse_use: float
    """Share of the coarse codes that occur at all."""
    fine_use: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDecision:
    """Whether stage 2 starts from the fine-tuned tokenizer, and why, in words."""

    use: bool
    reason: str


def judge_tokenizer(
    before: TokenizerQuality, after: TokenizerQuality, *, codebook_drop: float
) -> TokenizerDecision:
    """Compare the tokenizer before and after stage 1; `codebook_drop` is the relative loss of used codes allowed."""
    loss = f"reconstruction error {before.loss:.5f} -> {after.loss:.5f}"
    if not after.loss < before.loss:
        return TokenizerDecision(
            use=False, reason=f"the base tokenizer is used: the fine-tuned one is not better, {loss}"
        )
    for name, earlier, later in (
        ("coarse", before.coarse_use, after.coarse_use),
        ("fine", before.fine_use, after.fine_use),
    ):
        if later < earlier * (1 - codebook_drop):
            return TokenizerDecision(
                use=False,
                reason=f"the base tokenizer is used: the fine-tuned one has the share of {name} codes in use fall "
                f"from {100 * earlier:.1f} % to {100 * later:.1f} % (it may lose {100 * codebook_drop:g} % of them)",
            )
    uses = f"codes in use {100 * after.coarse_use:.1f} % coarse, {100 * after.fine_use:.1f} % fine"
    return TokenizerDecision(use=True, reason=f"the fine-tuned tokenizer is used: {loss}, {uses}")


def read_quality(job: Path, step: int) -> TokenizerQuality:
    """What a tokenizer's training job measured on the validation windows at a step; 0 is before training."""
    path = job / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line["phase"] == "validation" and line["step"] == step]
    if not found or any(found[-1].get(name) is None for name in ("coarse_codebook_use", "fine_codebook_use")):
        raise ModelError(
            f"expected a validation of the tokenizer at step {step} in {path}, found none; train that stage again"
        )
    return TokenizerQuality(
        loss=found[-1]["loss"],
        coarse_use=found[-1]["coarse_codebook_use"],
        fine_use=found[-1]["fine_codebook_use"],
    )
