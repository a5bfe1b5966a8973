"""How much arithmetic training is, and how much of the device's it uses.

FLOPs of matrix products alone, 2 per multiply-add; attention counts all T x T pairs, masked or not, as is usual
for model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B). Recomputation is not counted, and what is
frozen counts as if it were trained. A token is one position of the sequence, that is one bar.
"""

import time
from dataclasses import dataclass

import torch

from kronos_model.config import PredictorConfig, TokenizerConfig
from kronos_model.kernels import linear

__all__ = ["Accounting", "device_peak", "forward_flops", "known_peak", "training_flops"]

_TRAINING = 3  # the backward pass is two products for each of the forward pass
_SIZE = 1024  # of the square matrices that measure a device
_PEAKS = {  # dense tensor cores, FLOP/s in bf16 and in float32 without TF32; makers' data sheets
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "4090": (165e12, 82.6e12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """Turns windows per second into what is worth comparing between models and devices."""

    tokens_per_window: int
    """Positions that the model reads of each window."""
    flops_per_token: float
    """Of one training step, forward and backward."""
    peak: float
    """FLOP/s that all devices of the run could do."""

    def speed(self, windows: int, seconds: float) -> dict[str, float]:
        """Of so many windows trained in that time; mfu is a share from 0 to 1."""
        tokens_per_s = windows * self.tokens_per_window / seconds
        return {
            "tokens_per_s": tokens_per_s,
            "flops_per_token": self.flops_per_token,
            "mfu": tokens_per_s * self.flops_per_token / self.peak,
        }


def training_flops(config: PredictorConfig | TokenizerConfig, length: int) -> float:
    """FLOPs per token of a training step over sequences of this length."""
    return _TRAINING * forward_flops(config, length)


def forward_flops(config: PredictorConfig | TokenizerConfig, length: int) -> float:
    """FLOPs per token of a forward pass as training makes it: both heads, both reconstructions."""
    if isinstance(config, PredictorConfig):
        width = config.d_model
        heads = width * ((1 << config.s1_bits) + (1 << config.s2_bits))
        layers = config.n_layers * _block(config, length)
        return layers + _attention(width, length) + 2 * (2 * width * width + heads)
    width, bits = config.d_model, config.s1_bits + config.s2_bits
    blocks = config.n_enc_layers - 1 + 2 * (config.n_dec_layers - 1)
    ends = config.d_in * width + width * bits + (config.s1_bits + bits) * width + 2 * width * config.d_in
    return blocks * _block(config, length) + 2 * ends


def _block(config: PredictorConfig | TokenizerConfig, length: int) -> float:
    return _attention(config.d_model, length) + 2 * 3 * config.d_model * config.ff_dim


def _attention(width: int, length: int) -> float:
    return 2 * 4 * width * width + 4 * length * width


def known_peak(device_name: str, *, bfloat16: bool) -> float | None:
    """FLOP/s of a GPU by its name; None of one that is not listed."""
    return next((peaks[not bfloat16] for name, peaks in _PEAKS.items() if name in device_name), None)


def device_peak(device: torch.device, *, bfloat16: bool) -> float:
    """FLOP/s of a device: from its data sheet, else the most that square products reach in 5 attempts."""
    if device.type == "cuda" and (known := known_peak(torch.cuda.get_device_name(device), bfloat16=bfloat16)):
        return known
    kind = torch.bfloat16 if bfloat16 else torch.float32
    a = torch.ones(_SIZE, _SIZE, device=device, dtype=kind)
    with torch.inference_mode():
        return 2 * _SIZE**3 / min(_seconds(a) for _ in range(5))


def _seconds(a: torch.Tensor) -> float:
    began = time.perf_counter()
    linear(a, a)[0, 0].item()  # waits for the device
    return time.perf_counter() - began
