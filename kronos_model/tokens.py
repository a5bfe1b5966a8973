"""Tokens of a dataset's windows: encoded once by the frozen tokenizer and mapped, or encoded as needed.

Stored as <dataset>/tokens/<tokenizer digest>/<split>.npy. Shapes: N windows of a split, B of a batch,
L bars of a window, F=6 features; the last axis of tokens is coarse, fine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
    "encode_split",
    "normalised",
    "to_device",
    "token_source",
]

_CHUNK = 16  # windows per call of the tokenizer, always: see _encode
_BYTES_PER_BAR = 4  # two uint16

Progress = Callable[[int, int], object]


class TokenSource(Protocol):
    """Tokens of a split's windows, by index."""

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Tokens (B, L, 2) int64, on the CPU."""


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
        parts = [
            _encode(self.dataset, self.tokenizer, self.split, chosen[first : first + _CHUNK], self.device)
            for first in range(0, len(chosen), _CHUNK)
        ]
        return torch.cat(parts)


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
    size = dataset.count(split) * dataset.length * _BYTES_PER_BAR
    pays = size <= budget_mb << 20 and draws >= dataset.count(split)
    if pays or _path(folder, digest, split).exists():
        path = encode_split(
            dataset, tokenizer, split, folder=folder, digest=digest, device=device, progress=progress
        )
        shape, remedy = (dataset.count(split), dataset.length, 2), "delete that file and run again"
        return StoredTokens(tokens=mapped(path, np.uint16, shape, what="tokens in", remedy=remedy))
    return LiveTokens(dataset=dataset, tokenizer=tokenizer, split=split, device=device)


def encode_split(
    dataset: WindowDataset,
    tokenizer: KronosTokenizer,
    split: Split,
    *,
    folder: Path,
    digest: str,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> Path:
    """The split's token file (N, L, 2) uint16, encoded unless it exists, by one process at a time."""
    path, count = _path(folder, digest, split), dataset.count(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock", what="encoding", waiting=lambda: progress(0, count)):
        if path.exists():
            return path
        for leftover in path.parent.glob(".*.tmp"):  # of a killed process: nobody else holds the lock
            leftover.unlink()
        with replace_file(path) as temporary:
            tokens = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint16, shape=(count, dataset.length, 2)
            )
            for first in range(0, count, _CHUNK):
                indices = np.arange(first, min(first + _CHUNK, count))
                tokens[indices] = _encode(dataset, tokenizer, split, indices, device).numpy()
                progress(int(indices[-1]) + 1, count)
            tokens.flush()
    return path


@torch.inference_mode()
def _encode(
    dataset: WindowDataset,
    tokenizer: KronosTokenizer,
    split: Split,
    indices: NDArray[np.integer],
    device: torch.device,
) -> Tensor:
    """Tokens (B, L, 2) int64 of at most _CHUNK windows, on the CPU.

    In float32 and always in calls of _CHUNK windows, the last ones repeated: a kernel's rounding may depend
    on the shape of its input, and a latent near zero flips its bit.
    """
    padded = np.pad(indices, (0, _CHUNK - len(indices)), mode="edge")
    with torch.autocast(device.type, enabled=False):
        x = normalised(dataset, dataset.batch(split, padded), device)  # (B, L, F)
        tokens = torch.stack(tokenizer.encode_halves(x), dim=-1)  # (B, L, 2)
    return tokens[: len(indices)].cpu()


def _path(folder: Path, digest: str, split: Split) -> Path:
    return folder / "tokens" / digest / f"{split}.npy"
