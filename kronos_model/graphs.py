"""Drawing bars as one program that does not change from bar to bar: eager, or replayed as a CUDA graph.

A bar of Kronos-small is some 200 small kernels; started one by one from Python they take longer than they run.
B series, S samples of each, H horizon.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kronos_model.decoding import Memory
from kronos_model.sampling_config import Acceleration

__all__ = ["Acceleration", "BarProgram", "accelerates", "captured"]

DrawBar = Callable[[Memory, Tensor, Tensor], Tensor]

_WARM_UPS = 3  # before a capture: libraries choose kernels and allocate their workspaces


def accelerates(device: torch.device, how: Acceleration) -> bool:
    """Whether bars are drawn by a program; elsewhere its fixed shapes would cost more than they save."""
    return device.type == "cuda" and how != "off"


class BarProgram:
    """Draws the bars after the first into `ids`, the place of the next one being a tensor that it moves itself."""

    def __init__(
        self, memory: Memory, shape: tuple[int, int, int], draw_bar: DrawBar, how: Acceleration
    ) -> None:
        """`draw_bar` gives the tokens (2, B, S) of the bar at a place (1,), from uniforms (B, S, 2)."""
        device = memory.future.device
        self.memory, self._draw_bar = memory, draw_bar
        self.ids = torch.zeros((2, *shape), dtype=torch.long, device=device)
        self.uniforms = torch.zeros((*shape, 2), device=device)
        self._place = torch.ones(1, dtype=torch.long, device=device)
        self._how = how
        self._replay: Callable[[], object] | None = None

    def start(self) -> None:
        """Begin at the second bar, which needs the first in `ids` and prompts in the memory. May draw at random."""
        if self._replay is None:
            self._replay = self._prepare()
        self._place.fill_(1)

    def advance(self) -> None:
        """Read the newest bar and draw the next."""
        assert self._replay is not None, "start comes first"
        self._replay()

    def _prepare(self) -> Callable[[], object]:
        if self._how == "off":
            return self._bar
        bar = torch.compile(self._bar, dynamic=False) if self._how == "compile" else self._bar
        return captured(bar, rewind=lambda: self._place.fill_(1))

    def _bar(self) -> None:
        self.memory.extend(self.ids.index_select(3, self._place - 1), self._place - 1)
        uniforms = self.uniforms.index_select(2, self._place)[:, :, 0]
        drawn = self._draw_bar(self.memory, uniforms, self._place)
        self.ids.index_copy_(3, self._place, drawn[..., None])
        self._place.add_(1)


def captured(step: Callable[[], object], *, rewind: Callable[[], object]) -> Callable[[], object]:
    """`step` as a CUDA graph; `rewind` undoes what running it has moved."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            rewind()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    rewind()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
