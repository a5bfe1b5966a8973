"""What each stage minimises in training, and what it is judged by in validation.

`losses` are means over train windows; training minimises "loss". `tally` gives sums over validation windows, of a
model in evaluation mode, to be added up; `summary` makes numbers of them, and the lowest "loss" is the best model.
Shapes: B windows, L bars, F=6 features, V1 and V2 vocabularies of the coarse and the fine token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kronos_model.predictor import Kronos, draw_tokens
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.tokens import TokenSource, normalised, to_device
from kronos_model.windows import Split, WindowDataset

__all__ = ["Objective", "PredictorObjective", "TokenizerObjective"]

Indices = NDArray[np.integer]
_VALIDATION_SEED = 0  # of the coarse tokens drawn in validation: the same for every model and step


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerObjective:
    """Stage 1: coarse and fine reconstruction and the quantiser's loss, through the straight-through path.

    Training minimises (coarse + fine + quantizer) / 2, as upstream. Validation judges (coarse + fine) / 2:
    the quantiser's loss keeps codes in use but says nothing about bars.
    """

    dataset: WindowDataset
    device: torch.device

    def losses(self, model: nn.Module, indices: Indices, generator: torch.Generator) -> dict[str, Tensor]:
        x = self._inputs("train", indices)
        out = cast(KronosTokenizer, model)(x)
        coarse, fine = (F.mse_loss(bars, x) for bars in out.reconstructions)
        return {
            "loss": (coarse + fine + out.bsq_loss) / 2,
            "coarse_loss": coarse,
            "fine_loss": fine,
            "quantizer_loss": out.bsq_loss,
        }

    def tally(self, model: nn.Module, indices: Indices) -> dict[str, Tensor]:
        tokenizer = cast(KronosTokenizer, model)
        x = self._inputs("validation", indices)
        out = tokenizer(x)
        coarse, fine = ((bars - x).square().mean(dim=(1, 2)).double().sum() for bars in out.reconstructions)
        s1_ids, s2_ids = tokenizer.split(out.indices)
        return {
            "coarse_loss": coarse,
            "fine_loss": fine,
            "quantizer_loss": out.bsq_loss.double() * len(indices),
            "coarse_codes": torch.bincount(s1_ids.flatten(), minlength=2**tokenizer.config.s1_bits),
            "fine_codes": torch.bincount(s2_ids.flatten(), minlength=2**tokenizer.config.s2_bits),
        }

    def summary(self, sums: Mapping[str, Tensor], windows: int) -> dict[str, float]:
        means = {name: float(sums[name]) / windows for name in ("coarse_loss", "fine_loss", "quantizer_loss")}
        use = {
            name.replace("codes", "codebook_use"): float((sums[name] > 0).double().mean())
            for name in ("coarse_codes", "fine_codes")
        }
        return {"loss": (means["coarse_loss"] + means["fine_loss"]) / 2} | means | use

    def _inputs(self, split: Split, indices: Indices) -> Tensor:
        return normalised(self.dataset, self.dataset.batch(split, indices), self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorObjective:
    """Stage 2: cross-entropy of the next bar's coarse and fine token.

    In training the fine token is conditioned on a sampled coarse token, as upstream. Validation is a
    likelihood, hence conditioned on the true one: loss = (s1_loss + s2_loss) / 2, in nats per token. Beside
    it stand s2_sampled_loss, as training sees it, and forecast_loss, over the bars after the lookback.
    """

    dataset: WindowDataset
    device: torch.device
    train: TokenSource
    validation: TokenSource

    def losses(self, model: nn.Module, indices: Indices, generator: torch.Generator) -> dict[str, Tensor]:
        tokens, stamps = self._batch("train", indices)
        s1_logits, s2_logits = cast(Kronos, model)(
            tokens[:, :-1, 0], tokens[:, :-1, 1], stamps[:, :-1], generator=generator
        )
        s1_loss = _cross_entropy(s1_logits, tokens[:, 1:, 0]).mean()
        s2_loss = _cross_entropy(s2_logits, tokens[:, 1:, 1]).mean()
        return {"loss": (s1_loss + s2_loss) / 2, "s1_loss": s1_loss, "s2_loss": s2_loss}

    def tally(self, model: nn.Module, indices: Indices) -> dict[str, Tensor]:
        predictor = cast(Kronos, model)
        tokens, stamps = self._batch("validation", indices)
        s1_targets, s2_targets = tokens[:, 1:, 0], tokens[:, 1:, 1]
        s1_logits, context = predictor.decode_s1(tokens[:, :-1, 0], tokens[:, :-1, 1], stamps[:, :-1])
        s1 = _cross_entropy(s1_logits, s1_targets)  # (B, L - 1)
        s2 = _cross_entropy(predictor.decode_s2(context, s1_targets), s2_targets)
        # drawn from a generator that depends on the windows alone
        generator = torch.Generator(self.device).manual_seed(_VALIDATION_SEED + int(indices[0]))
        drawn = draw_tokens(s1_logits, generator)  # (B, L - 1)
        sampled = _cross_entropy(predictor.decode_s2(context, drawn), s2_targets)
        forecast = (s1 + s2)[:, self.dataset.lookback - 1 :] / 2  # the first target is the second bar
        sums = {"s1_loss": s1, "s2_loss": s2, "s2_sampled_loss": sampled, "forecast_loss": forecast}
        return {name: value.double().mean(dim=1).sum() for name, value in sums.items()}

    def summary(self, sums: Mapping[str, Tensor], windows: int) -> dict[str, float]:
        means = {name: float(value) / windows for name, value in sums.items()}
        return {"loss": (means["s1_loss"] + means["s2_loss"]) / 2} | means

    def _batch(self, split: Split, indices: Indices) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, 2) and stamps (B, L, 5)."""
        source = self.train if split == "train" else self.validation
        stamps = self.dataset.batch(split, indices).stamps
        return to_device(source.batch(indices), self.device), to_device(stamps, self.device)


Objective = TokenizerObjective | PredictorObjective


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, L - 1) from logits (B, L - 1, V)."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(
        targets.shape
    )
