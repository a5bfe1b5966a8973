"""Forecasts in prices: raw bars in, consistent sample paths out.

B series, C context bars, H horizon, S samples; features open, high, low, close, volume, amount.
Series of different length come as a sequence of arrays, each (C, 6), in place of one (B, C, 6).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kronos_model.context import Forecast
from kronos_model.errors import DataError
from kronos_model.hub import load_pair, preset_of, read_metadata
from kronos_model.normalise import Normaliser, Scale
from kronos_model.postprocess import PostProcess
from kronos_model.predictor import Kronos, S2Decode
from kronos_model.sampling import PathSampler, Precision, SamplingConfig
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.windows import calendar_stamps

__all__ = ["Forecast", "Forecaster", "consistent"]

Bars = NDArray[np.float32] | Sequence[NDArray[np.float32]]
Times = NDArray[np.int64] | Sequence[NDArray[np.int64]]

DEFAULT_CONTEXT = 512
PRICE_FLOOR = 1e-6  # of the last close


class Forecaster:
    """A tokenizer, a predictor and their normaliser, ready to forecast. Their weights must not change any more."""

    def __init__(
        self,
        tokenizer: KronosTokenizer,
        predictor: Kronos,
        normaliser: Normaliser,
        *,
        max_context: int = DEFAULT_CONTEXT,
        s2_decode: S2Decode = "trained",
        postprocess: PostProcess | None = None,
        prices_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.tokenizer = tokenizer.to(self.device).eval()
        self.predictor = predictor.to(self.device).eval()
        self.normaliser = normaliser
        self.max_context = max_context
        self.s2_decode: S2Decode = s2_decode
        self.postprocess = postprocess
        self.prices_only = prices_only
        self._samplers: dict[Precision, PathSampler] = {}

    @classmethod
    def load(
        cls,
        tokenizer_path: Path,
        predictor_path: Path,
        *,
        normaliser: Normaliser | None = None,
        max_context: int | None = None,
        s2_decode: S2Decode | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a pair with its post-processing and what its kronos_nightly.json records; an argument overrides it.

        Upstream's folders record nothing: they get upstream's normaliser and their preset's context.
        """
        tokenizer, predictor = load_pair(tokenizer_path, predictor_path)
        metadata = read_metadata(predictor_path) or {}
        preset = preset_of(predictor.config)
        recorded = metadata.get("normaliser")
        return cls(
            tokenizer,
            predictor,
            normaliser or (Normaliser.from_dict(recorded) if recorded else Normaliser()),
            max_context=max_context
            or metadata.get("max_context")
            or (preset.max_context if preset else DEFAULT_CONTEXT),
            s2_decode=s2_decode or metadata.get("s2_decode", "trained"),
            postprocess=PostProcess.load(predictor_path),
            prices_only=metadata.get("prices_only", False),
            device=device,
        )

    def paths(
        self,
        features: Bars,
        open_time: Times,
        future_open_time: NDArray[np.int64],
        series: Sequence[str],
        *,
        config: SamplingConfig,
        seed: int | Sequence[int],
        samples: int | None = None,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Forecast:
        """Continue raw bars (B, C, 6) that open at (B, C) ms over the bars that open at (B, H) ms.

        `series` names the rows, for the normaliser. Only the last max_context bars count. A row's paths
        depend on its name, its last open time and the seed (one for all, or one each), not on the other rows.
        These are paths as the network draws them; kronos_model.served makes of them what is served.
        """
        _check(features, open_time, future_open_time, series)
        seeds = [seed] * len(series) if isinstance(seed, int) else seed
        bars = [self._bars(one[-self.max_context :]) for one in features]
        stamps = [self._stamps(times[-self.max_context :]) for times in open_time]
        scales = [self.normaliser.measure(one[None], [name]) for one, name in zip(bars, series, strict=True)]
        context = [self.normaliser.forward(one[None], at)[0] for one, at in zip(bars, scales, strict=True)]
        normalised = self._sampler(config.precision).paths(
            pad_sequence(context, batch_first=True),
            pad_sequence(stamps, batch_first=True),
            torch.stack([self._stamps(times) for times in future_open_time]),
            lengths=[len(one) for one in bars],
            samples=samples,
            config=config,
            generator=[
                _generator(one, name, row[-1])
                for one, name, row in zip(seeds, series, open_time, strict=True)
            ],
            max_context=self.max_context,
            progress=progress,
        )
        scale = Scale(*(torch.cat(parts) for parts in zip(*scales, strict=True)))
        raw = self.normaliser.inverse(normalised, scale)
        last_close = torch.stack([one[-1, 3] for one in bars])
        paths, broken = consistent(raw, last_close=last_close)
        rate = broken.double().mean(dim=(1, 2))
        return Forecast(paths=paths.cpu().numpy(), violation_rate=rate.cpu().numpy())

    def _sampler(self, precision: Precision) -> PathSampler:
        if precision not in self._samplers:
            self._samplers[precision] = PathSampler(
                self.tokenizer, self.predictor, s2_decode=self.s2_decode, precision=precision
            )
        return self._samplers[precision]

    def _bars(self, bars: NDArray[np.float32]) -> Tensor:
        if self.prices_only:
            bars = np.concatenate([bars[:, :4], np.zeros_like(bars[:, 4:])], axis=1)
        return torch.as_tensor(np.ascontiguousarray(bars), device=self.device)

    def _stamps(self, open_time: NDArray[np.int64]) -> Tensor:
        return torch.as_tensor(calendar_stamps(open_time), device=self.device)


def consistent(raw: Tensor, *, last_close: Tensor) -> tuple[Tensor, Tensor]:
    """Paths (B, S, H, 6) made consistent bar by bar, and which bars (B, S, H) were not.

    Prices are kept above a millionth of the last close (B,), so that their logarithms stay finite.
    """
    opened, high, low, close = raw[..., :4].unbind(dim=-1)
    broken = (high < torch.maximum(opened, close)) | (low > torch.minimum(opened, close))
    broken |= (raw[..., :4] <= 0).any(dim=-1) | (raw[..., 4:] < 0).any(dim=-1)
    prices = torch.maximum(raw[..., :4], (PRICE_FLOOR * last_close)[:, None, None, None])
    fixed = torch.cat([prices, raw[..., 4:].clamp_min(0.0)], dim=-1)
    fixed[..., 1] = prices.amax(dim=-1)
    fixed[..., 2] = prices.amin(dim=-1)
    return fixed, broken


def _generator(seed: int, name: str, origin_ms: int) -> torch.Generator:
    """On the CPU, so that every device draws the same numbers."""
    digest = hashlib.sha256(f"{seed}|{name}|{origin_ms}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _check(
    features: Bars, open_time: Times, future_open_time: NDArray[np.int64], series: Sequence[str]
) -> None:
    shapes = [bars.shape for bars in features]
    matching = len(shapes) == len(open_time) == len(future_open_time) == len(series) > 0
    if (
        not matching
        or future_open_time.ndim != 2
        or any(
            len(times) == 0 or shape != (*times.shape, 6)
            for shape, times in zip(shapes, open_time, strict=True)
        )
    ):
        raise DataError(
            f"for {len(series)} series, features must be (B, C, 6) and open times (B, C) and (B, H), found "
            f"{_shape(features)}, {_shape(open_time)} and {future_open_time.shape}: pass matching arrays."
        )
    for bars in features:
        if bars.dtype != np.float32:
            raise DataError(f"features must be float32, found {bars.dtype}: convert them.")
        if not np.isfinite(bars).all():
            raise DataError(
                "features must be finite, found NaN or infinity: cut the context after the last gap."
            )
        if not bars[-1, 3] > 0:
            raise DataError("the last close must be above 0, found one that is not: check the candles.")


def _shape(arrays: Bars | Times) -> object:
    return arrays.shape if isinstance(arrays, np.ndarray) else [array.shape for array in arrays]
