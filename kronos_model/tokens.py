"""Tokens of a dataset's windows: encoded once by the frozen tokenizer and mapped, or encoded as needed.

Stored as <dataset>/tokens/<tokenizer digest>/<split>.npy. Shapes: N windows of a split, B of a batch,
L bars of a window, F=6 features; the last axis of tokens is coarse, fine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_model.files import replace_file
from kronos_model.lock import locked
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.windows import Split, WindowDataset, Windows, mapped

__all__ = [
    "LiveTokens",
    "StoredTokens",
    "TokenSource",
    "normalised",
    "to_device",
    "token_source",
]

_CHUNK = 16  # windows per call of the tokenizer, always: see _encode

Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTokens:
    """Tokens mapped from disk."""

    tokens: NDArray[np.uint16]  # (N, L, 2)

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(self.tokens[np.asarray(indices)].astype(np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTokens:
    """Tokens encoded at each call, equal to the stored ones."""

    dataset: WindowDataset
    tokenizer: KronosTokenizer
    split: Split
    device: torch.device

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        chosen = np.asarray(indices)
        return torch.cat([self._encode(chosen[at : at + _CHUNK]) for at in range(0, len(chosen), _CHUNK)])

    def store(self, path: Path, progress: Progress = lambda done, total: None) -> None:
        """Write all of the split, (N, L, 2) uint16, unless the file exists; one process at a time."""
        count = self.dataset.count(self.split)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / ".lock", what="encoding", waiting=lambda: progress(0, count)):
            if path.exists():
                return
            for leftover in path.parent.glob(".*.tmp"):  # of a killed process: nobody else holds the lock
                leftover.unlink()
            with replace_file(path) as temporary:
                tokens = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.uint16, shape=(count, self.dataset.length, 2)
                )
                for first in range(0, count, _CHUNK):
                    indices = np.arange(first, min(first + _CHUNK, count))
                    tokens[indices] = self._encode(indices).numpy()
                    progress(int(indices[-1]) + 1, count)
                tokens.flush()

    @torch.inference_mode()
    def _encode(self, indices: NDArray[np.integer]) -> Tensor:
        """Tokens (B, L, 2) int64 of at most _CHUNK windows, on the CPU.

        In float32 and always in calls of _CHUNK windows, the last ones repeated: a kernel's rounding may depend
        on the shape of its input, and a latent near zero flips its bit.
        """
        padded = np.pad(indices, (0, _CHUNK - len(indices)), mode="edge")
        with torch.autocast(self.device.type, enabled=False):
            x = normalised(self.dataset, self.dataset.batch(self.split, padded), self.device)  # (B, L, F)
            tokens = torch.stack(self.tokenizer.encode_halves(x), dim=-1)  # (B, L, 2)
        return tokens[: len(indices)].cpu()


TokenSource = StoredTokens | LiveTokens
"""Tokens of a split's windows, by index: `batch` gives (B, L, 2) int64 on the CPU."""


def normalised(dataset: WindowDataset, windows: Windows, device: torch.device) -> Tensor:
    """What the tokenizer reads (B, L, F): each window by the statistics of its lookback alone."""
    features = to_device(windows.features, device)
    scale = dataset.normaliser.measure(features[:, : dataset.lookback], windows.series)
    return dataset.normaliser.forward(features, scale)


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """The batch there; from pinned memory to a GPU, so that the copy runs while the device computes."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def token_source(
    dataset: WindowDataset,
    tokenizer: KronosTokenizer,
    split: Split,
    *,
    folder: Path,
    digest: str,
    draws: int,
    budget_mb: int,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> TokenSource:
    """Stored tokens where they exist, or fit the budget and pay; else live ones. The tokens are the same.

    folder is the dataset's, digest the tokenizer's, draws the windows that will be asked for in all.
    """
    live = LiveTokens(dataset=dataset, tokenizer=tokenizer, split=split, device=device)
    path, shape = folder / "tokens" / digest / f"{split}.npy", (dataset.count(split), dataset.length, 2)
    pays = math.prod(shape) * np.uint16().itemsize <= budget_mb << 20 and draws >= shape[0]
    if not pays and not path.exists():
        return live
    live.store(path, progress)
    remedy = "delete that file and run again"
    return StoredTokens(tokens=mapped(path, np.uint16, shape, what="tokens in", remedy=remedy))
