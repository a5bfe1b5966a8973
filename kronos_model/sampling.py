"""Sample paths: the prompt's tokens are extended bar by bar, and only the new bars are decoded.

B series, S samples, R rows (series x sample), C context bars, H horizon, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kronos_model.errors import MismatchedPair
from kronos_model.predictor import Kronos, S2Decode
from kronos_model.tokenizer import KronosTokenizer

__all__ = ["SamplingConfig", "draw", "filter_logits", "sample_paths", "sample_tokens"]

Generators = torch.Generator | Sequence[torch.Generator]
Tokens = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How tokens are drawn; temperature first, then top-k, then top-p."""

    temperature: float = 1.0
    """Divides the logits; below 1 sharpens, above 1 flattens, 0 always takes the likeliest token."""
    top_k: int | None = 0
    """Only this many likeliest tokens may be drawn; 0 or none: all, 1: always the likeliest."""
    top_p: float | None = 1.0
    """Only the likeliest tokens that together reach this share may be drawn; 1 or none: all."""
    samples: int = 20
    """Paths per series."""
    rows: int = 256
    """Paths advanced at once; bounds the memory, does not change the paths."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {self.temperature}: use 0 for greedy.")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, found {self.top_k}: use 0 to keep all tokens.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p must be above 0 and at most 1, found {self.top_p}: use 1 to keep all tokens."
            )
        for name in ("samples", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}: raise it.")

    @property
    def greedy(self) -> bool:
        """All samples are the same path."""
        return self.temperature == 0 or self.top_k == 1


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits (R, V) over the temperature, -inf where top-k or top-p leave a token out."""
    logits = logits / config.temperature
    if config.top_k and config.top_k < logits.shape[-1]:
        lowest = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        reached = ordered.softmax(dim=-1).cumsum(dim=-1)
        late = reached > config.top_p
        late = torch.cat(
            [torch.zeros_like(late[:, :1]), late[:, :-1]], dim=-1
        )  # the one that reaches it stays
        logits = logits.masked_fill(torch.zeros_like(late).scatter(1, order, late), -torch.inf)
    return logits


def draw(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """One token (R,) per row of logits (R, V), by inverting its distribution at uniforms (R,) in [0, 1)."""
    if config.greedy:
        return logits.argmax(dim=-1)
    wide = logits.float() if logits.device.type == "mps" else logits.double()  # MPS has no float64
    reached = filter_logits(wide, config).softmax(dim=-1).cumsum(dim=-1)
    target = uniforms.to(reached.dtype)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.inference_mode()
def sample_paths(
    tokenizer: KronosTokenizer,
    predictor: Kronos,
    context: Tensor,
    stamps: Tensor,
    future_stamps: Tensor,
    *,
    config: SamplingConfig,
    generator: Generators,
    max_context: int,
    samples: int | None = None,
    s2_decode: S2Decode = "trained",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tensor:
    """Normalised paths (B, S, H, 6) after the normalised context (B, C, 6).

    `stamps` (B, C, 5) and `future_stamps` (B, H, 5) are the calendar. `samples` overrides the config's.
    One generator serves the batch; one per series makes a series' paths independent of its batch.
    """
    _check(tokenizer, predictor, future_stamps.shape[1], max_context)
    batch, length, _ = context.shape
    horizon, count = future_stamps.shape[1], config.samples if samples is None else samples
    drawn = 1 if config.greedy else count
    with _evaluating(tokenizer, predictor):
        prompt = tokenizer.encode_halves(context)
        uniforms = _uniforms(generator, (batch, drawn, horizon, 2)).to(context.device)
        calendar = torch.cat([stamps, future_stamps], dim=1)
        s1_ids, s2_ids = sample_tokens(
            predictor,
            prompt,
            calendar,
            uniforms,
            config=config,
            max_context=max_context,
            s2_decode=s2_decode,
            progress=progress,
        )
        tail = slice(max(0, length + horizon - max_context), None)
        parts = [
            tokenizer.decode((s1_ids[rows, tail], s2_ids[rows, tail]), half=True, last=horizon)
            for rows in _chunks(len(s1_ids), config.rows)
        ]
    paths = torch.cat(parts).view(batch, drawn, horizon, -1)
    return paths.expand(batch, count, -1, -1).contiguous()


def sample_tokens(
    predictor: Kronos,
    prompt: Tokens,
    calendar: Tensor,
    uniforms: Tensor,
    *,
    config: SamplingConfig,
    max_context: int,
    s2_decode: S2Decode = "trained",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tokens:
    """Coarse and fine tokens (B x S, C + H) each: the prompt (B, C) with its continuations.

    `calendar` (B, C + H, 5) holds the stamps, `uniforms` (B, S, H, 2) the random numbers of every token.
    """
    batch, samples, horizon, _ = uniforms.shape
    series = torch.arange(batch, device=uniforms.device).repeat_interleave(samples)  # (R,)
    done, total = 0, batch * samples * horizon
    parts: list[Tokens] = []
    for rows in _chunks(len(series), config.rows):
        state = _Rows(predictor, prompt, calendar, series[rows], max_context=max_context, s2_decode=s2_decode)
        numbers = uniforms.flatten(0, 1)[rows]  # (R, H, 2)
        for step in range(horizon):
            state.advance(numbers[:, step], config)
            done += len(numbers)
            progress(done, total)
        parts.append((state.s1_ids, state.s2_ids))
    return torch.cat([s1 for s1, _ in parts]), torch.cat([s2 for _, s2 in parts])


class _Rows:
    """Token rows in growth; the first step runs once per series. A cache of keys and values belongs here."""

    def __init__(
        self,
        predictor: Kronos,
        prompt: Tokens,
        calendar: Tensor,
        series: Tensor,
        *,
        max_context: int,
        s2_decode: S2Decode,
    ) -> None:
        self.predictor, self.max_context, self.s2_decode = predictor, max_context, s2_decode
        self.prompt, self.calendar, self.series = prompt, calendar, series
        self.length = prompt[0].shape[1]
        room = (len(series), calendar.shape[1])
        self.s1_ids, self.s2_ids = prompt[0].new_zeros(room), prompt[1].new_zeros(room)
        self.s1_ids[:, : self.length], self.s2_ids[:, : self.length] = prompt[0][series], prompt[1][series]

    def advance(self, uniforms: Tensor, config: SamplingConfig) -> None:
        """Append one bar to every row, from uniforms (R, 2)."""
        hidden = self._hidden()
        s1_next = draw(self.predictor.head(hidden[:, -1]), uniforms[:, 0], config)
        s2_logits = self.predictor.decode_s2(hidden, s1_next[:, None], s2_decode=self.s2_decode)[:, -1]
        self.s1_ids[:, self.length] = s1_next
        self.s2_ids[:, self.length] = draw(s2_logits, uniforms[:, 1], config)
        self.length += 1

    def _hidden(self) -> Tensor:
        """State (R, T, D) over the window of at most max_context bars that ends at the newest one."""
        window = slice(max(0, self.length - self.max_context), self.length)
        if self.length == self.prompt[0].shape[1]:
            known, row = torch.unique(self.series, return_inverse=True)
            s1_ids, s2_ids = (ids[known, window] for ids in self.prompt)
            return self.predictor.trunk(s1_ids, s2_ids, self.calendar[known, window])[row]
        stamps = self.calendar[self.series, window]
        return self.predictor.trunk(self.s1_ids[:, window], self.s2_ids[:, window], stamps)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _uniforms(generator: Generators, shape: tuple[int, int, int, int]) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"expected one generator or {shape[0]}, one per series, found {len(generator)}: match them."
        )
    return torch.stack([torch.rand(shape[1:], generator=one, device=one.device) for one in generator])


def _check(tokenizer: KronosTokenizer, predictor: Kronos, horizon: int, max_context: int) -> None:
    if not 1 <= horizon < max_context:
        raise ValueError(
            f"the horizon must be in 1..{max_context - 1}, below max_context, found {horizon}: change it."
        )
    bits = (tokenizer.config.s1_bits, tokenizer.config.s2_bits)
    found = (predictor.config.s1_bits, predictor.config.s2_bits)
    if bits != found:
        raise MismatchedPair(
            f"the tokenizer makes tokens of {bits[0]}+{bits[1]} bits, the predictor reads "
            f"{found[0]}+{found[1]}: give the pair that was trained together."
        )


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Without dropout, whatever mode the models are in."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
