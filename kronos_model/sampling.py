"""Sample paths: the prompt's tokens are extended bar by bar, and only the new bars are decoded.

B series, S samples, R rows (series x sample), C context bars, H horizon, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kronos_model.cache import Place
from kronos_model.config import check_bits
from kronos_model.decoding import CachedDecoder, CachedPredictor, DecodedPrompt, Memory, Prompt
from kronos_model.graphs import BarProgram, accelerates
from kronos_model.predictor import Kronos, S2Decode
from kronos_model.sampling_config import Precision, SamplingConfig
from kronos_model.tokenizer import KronosTokenizer

__all__ = ["PathSampler", "Precision", "SamplingConfig", "draw", "filter_logits"]

Generators = torch.Generator | Sequence[torch.Generator]
Progress = Callable[[int, int], object]

_DECODED_ROWS = 32  # paths through the tokenizer's decoder at once


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits (R, V) over the temperature, -inf where top-k or top-p leave a token out.

    Top-k: Fan et al. 2018, arXiv 1805.04833; top-p: Holtzman et al. 2020, arXiv 1904.09751.
    """
    logits = logits / config.temperature
    if config.top_k and config.top_k < logits.shape[-1]:
        lowest = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered = _descending(logits)
        reached = ordered.softmax(dim=-1).cumsum(dim=-1)
        needed = (reached <= config.top_p).sum(dim=-1, keepdim=True)  # and the one that reaches it
        lowest = ordered.gather(-1, needed.clamp(max=logits.shape[-1] - 1))
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return logits


def _descending(logits: Tensor) -> Tensor:
    """Sorted values; numpy's sort without indices takes a twentieth of torch's time on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=-1))
    return logits.sort(dim=-1, descending=True).values


def draw(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """One token (R,) per row of logits (R, V), by inverting its distribution at uniforms (R,) in [0, 1)."""
    if config.greedy:
        return logits.argmax(dim=-1)
    wide = logits.float() if logits.device.type == "mps" else logits.double()  # MPS has no float64
    reached = filter_logits(wide, config).softmax(dim=-1).cumsum(dim=-1)
    target = uniforms.to(reached.dtype)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class PathSampler:
    """A tokenizer and a predictor prepared for sampling; keep one for as long as their weights stay as they are."""

    def __init__(
        self,
        tokenizer: KronosTokenizer,
        predictor: Kronos,
        *,
        s2_decode: S2Decode = "trained",
        precision: Precision = "float32",
    ) -> None:
        check_bits(tokenizer.config, predictor.config, makes="the tokenizer", reads="the predictor")
        self.tokenizer = tokenizer
        with torch.inference_mode():
            self.predictor = CachedPredictor(predictor, s2_decode=s2_decode, dtype=getattr(torch, precision))
            self.decoder = CachedDecoder(tokenizer)
        self._program: tuple[object, BarProgram] | None = None

    def program(self, prompt: Prompt, shape: tuple[int, int, int], config: SamplingConfig) -> BarProgram:
        """The program for prompts of this shape and so many (B, S, H) bars; only the latest is kept."""
        key = (prompt.s1_ids.shape, prompt.ragged, shape, config)
        if self._program is None or self._program[0] != key:
            self._program = None  # its memory is free before the next one's is taken
            memory = Memory(self.predictor, prompt, samples=shape[1], horizon=shape[2] - 1)
            self._program = key, BarProgram(memory, shape, _bar_drawer(config), config.acceleration)
        return self._program[1]

    @torch.inference_mode()
    def paths(
        self,
        context: Tensor,
        stamps: Tensor,
        future_stamps: Tensor,
        *,
        config: SamplingConfig,
        generator: Generators,
        max_context: int,
        samples: int | None = None,
        lengths: Sequence[int] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Tensor:
        """Normalised paths (B, S, H, 6) after the normalised context (B, C, 6).

        `stamps` (B, C, 5) and `future_stamps` (B, H, 5) are the calendar. `samples` overrides the config's.
        `lengths` says how many of its C bars each series has, from the first on; what follows is ignored.
        One generator serves the batch; one per series makes a series' paths independent of its batch.
        """
        horizon, count = future_stamps.shape[1], config.samples if samples is None else samples
        if not 1 <= horizon < max_context:
            raise ValueError(
                f"the horizon must be in 1..{max_context - 1}, below max_context, found {horizon}: change it."
            )
        drawn = 1 if config.greedy else count
        uniforms = _uniforms(generator, (len(context), drawn, horizon, 2)).to(context.device)
        tokens = self._encode(context)
        own = torch.tensor(
            lengths or [context.shape[1]] * len(context), device=context.device, dtype=torch.long
        )
        whole = Prompt(*tokens, stamps, own)
        task = _Task(self, config, max_context, future_stamps, _counter(progress, uniforms))
        paths = torch.empty(len(context), drawn, horizon, context.shape[2], device=context.device)
        for series, cached in _groups(own.tolist(), horizon=horizon, max_context=max_context):
            for chosen in torch.split(
                torch.tensor(series, device=context.device), max(1, config.rows // drawn)
            ):
                paths[chosen] = task.grow(whole.rows(chosen), chosen, uniforms[chosen], cached=cached)
        return paths.expand(-1, count, -1, -1).contiguous()

    def _encode(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens without dropout, whatever mode the tokenizer is in."""
        mode = self.tokenizer.training
        try:
            return self.tokenizer.eval().encode_halves(context)
        finally:
            self.tokenizer.train(mode)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is the same for all series of one call."""

    sampler: PathSampler
    config: SamplingConfig
    max_context: int
    future_stamps: Tensor  # (all, H, 5)
    count: Callable[[int], object]

    def grow(self, prompt: Prompt, series: Tensor, uniforms: Tensor, *, cached: int) -> Tensor:
        """Paths (B, S, H, 6) of some series; the first `cached` bars come with the prompt's cache."""
        future = self.future_stamps[series]
        horizon = future.shape[1]
        parts = []
        for numbers in torch.split(uniforms, self.config.rows, dim=1):
            ids = numbers.new_zeros((2, *numbers.shape[:3]), dtype=torch.long)  # (2, B, S, H)
            self._grow_cached(prompt.newest(self.max_context), future, ids, numbers, stop=cached)
            for step in range(cached, horizon):
                self._slide(prompt, future, ids, numbers, step)
            parts.append(ids)
        tokens = torch.cat(parts, dim=2)
        read = DecodedPrompt(self.sampler.decoder, prompt.newest(self.max_context - horizon), horizon=horizon)
        few = max(1, _DECODED_ROWS // len(future))
        return torch.cat([read.bars(ids) for ids in torch.split(tokens, few, dim=2)], dim=1)

    def _grow_cached(
        self, prompt: Prompt, future: Tensor, ids: Tensor, uniforms: Tensor, *, stop: int
    ) -> None:
        """Draw the bars 0..stop-1 into `ids` (2, B, S, H) from one reading of the prompt."""
        if stop > 1 and accelerates(ids.device, self.config.acceleration):
            self._replay(prompt, future, ids, uniforms, stop=stop)
            return
        memory = Memory(self.sampler.predictor, prompt, samples=ids.shape[2], horizon=stop - 1)
        memory.read(prompt, future[:, : stop - 1])
        for step in range(stop):
            if step:
                memory.extend(ids[..., step - 1 : step], step - 1)
            self._draw_bar(memory, ids, uniforms, step)

    def _replay(self, prompt: Prompt, future: Tensor, ids: Tensor, uniforms: Tensor, *, stop: int) -> None:
        """The same, by a program that serves all calls of this shape."""
        program = self.sampler.program(prompt, (*ids.shape[1:3], stop), self.config)
        program.start()
        program.memory.read(prompt, future[:, : stop - 1])
        program.uniforms.copy_(uniforms[:, :, :stop])
        self._draw_bar(program.memory, program.ids, uniforms, 0)
        for _ in range(1, stop):
            program.advance()
            self.count(uniforms.shape[0] * uniforms.shape[1])
        ids[..., :stop] = program.ids

    def _slide(self, prompt: Prompt, future: Tensor, ids: Tensor, uniforms: Tensor, step: int) -> None:
        """Draw one bar past the model's context, as upstream does: every position moves, so all is read again."""
        window = prompt.newest(self.max_context - step)
        memory = Memory(self.sampler.predictor, window, samples=ids.shape[2], horizon=step)
        memory.read(window, future[:, :step])
        memory.extend(ids[..., :step], 0)
        self._draw_bar(memory, ids, uniforms, step)

    def _draw_bar(self, memory: Memory, ids: Tensor, uniforms: Tensor, step: int) -> None:
        ids[..., step] = _bar_drawer(self.config)(memory, uniforms[:, :, step], step)
        self.count(ids.shape[1] * ids.shape[2])


def _bar_drawer(config: SamplingConfig) -> Callable[[Memory, Tensor, Place], Tensor]:
    """Draws the tokens (2, B, S) of the bar at a place, from uniforms (B, S, 2)."""

    def draw_bar(memory: Memory, uniforms: Tensor, place: Place) -> Tensor:
        shape = uniforms.shape[:2]
        coarse = draw(memory.coarse_logits(), uniforms[..., 0].flatten(), config).view(shape)
        fine = draw(memory.fine_logits(coarse, place), uniforms[..., 1].flatten(), config).view(shape)
        return torch.stack([coarse, fine])

    return draw_bar


def _groups(lengths: Sequence[int], *, horizon: int, max_context: int) -> list[tuple[list[int], int]]:
    """Series that can grow together, and how many of their bars fit into the context with the prompt.

    Those whose horizon fits may differ in length; where the window must slide, it slides alike.
    """
    groups: dict[int, list[int]] = {}
    for series, length in enumerate(lengths):
        groups.setdefault(max(length, max_context - horizon + 1), []).append(series)
    return [(some, max(1, min(horizon, max_context - key + 1))) for key, some in groups.items()]


def _counter(progress: Progress, uniforms: Tensor) -> Callable[[int], object]:
    """Tells `progress` how many bars have been drawn, of how many."""
    total, done = uniforms.shape[0] * uniforms.shape[1] * uniforms.shape[2], 0

    def count(bars: int) -> object:
        nonlocal done
        done += bars
        return progress(done, total)

    return count


def _uniforms(generator: Generators, shape: tuple[int, int, int, int]) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"expected one generator or {shape[0]}, one per series, found {len(generator)}: match them."
        )
    return torch.stack([torch.rand(shape[1:], generator=one, device=one.device) for one in generator])
