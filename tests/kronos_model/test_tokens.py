"""Tokens are the same however they come: one window at a time, stored, or encoded as needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kronos_model.errors import DataError
from kronos_model.tokenizer import KronosTokenizer
from kronos_model.tokens import LiveTokens, StoredTokens, normalised, token_source
from kronos_model.windows import WindowDataset, Windows
from tests.support.training import Ground, make_ground

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def dataset(ground: Ground) -> WindowDataset:
    return WindowDataset.open(ground.dataset.path)


@pytest.fixture(scope="module")
def tokenizer(ground: Ground) -> KronosTokenizer:
    return KronosTokenizer.from_pretrained(ground.pair.tokenizer)


@pytest.fixture(scope="module")
def expected(dataset: WindowDataset, tokenizer: KronosTokenizer) -> NDArray[np.int64]:
    """Tokens of the train split, window by window, scaled in numpy as upstream scales."""
    rows = []
    for index in range(dataset.count("train")):
        x = dataset.batch("train", [index]).features[0].numpy().astype(np.float64)
        past = x[: dataset.lookback]
        scaled = np.clip((x - past.mean(axis=0)) / past.std(axis=0), -5, 5).astype(np.float32)
        with torch.no_grad():
            s1, s2 = tokenizer.encode(torch.from_numpy(scaled)[None], half=True)
        rows.append(torch.stack([s1[0], s2[0]], dim=-1).numpy())
    return np.stack(rows)


def source(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, folder: Path, **options: Any
) -> Any:
    settings = {"draws": 10**6, "budget_mb": 100, "digest": "d", "device": CPU} | options
    return token_source(dataset, tokenizer, "train", folder=folder, **settings)


def test_stored_tokens_are_those_of_each_window_by_itself(
    ground: Ground,
    dataset: WindowDataset,
    tokenizer: KronosTokenizer,
    expected: NDArray[np.int64],
    tmp_path: Path,
) -> None:
    source(ground, dataset, tokenizer, tmp_path)
    path = tmp_path / "tokens" / "d" / "train.npy"
    stored = np.load(path, mmap_mode="r")
    assert stored.dtype == np.uint16
    # numpy and torch sum in another order, and a latent near zero flips its bit
    assert stored.shape == expected.shape
    assert (stored == expected).mean() > 0.999


def test_live_tokens_equal_stored_ones_in_any_order_and_batch(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, tmp_path: Path
) -> None:
    stored = source(ground, dataset, tokenizer, tmp_path)
    live = source(ground, dataset, tokenizer, tmp_path / "other", budget_mb=0)
    assert isinstance(stored, StoredTokens)
    assert isinstance(live, LiveTokens)
    order = np.random.default_rng(0).permutation(dataset.count("train"))
    for size in (1, 7, 32, 50):
        indices = order[:size]
        assert torch.equal(live.batch(indices), stored.batch(indices))
    assert not (tmp_path / "other").exists()


def test_tokens_are_encoded_once_and_then_mapped(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, tmp_path: Path, monkeypatch: Any
) -> None:
    first = source(ground, dataset, tokenizer, tmp_path).batch([0, 3])

    def refuse(self: object, x: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(KronosTokenizer, "encode_halves", refuse)
    assert torch.equal(source(ground, dataset, tokenizer, tmp_path).batch([0, 3]), first)
    assert torch.equal(
        source(ground, dataset, tokenizer, tmp_path, budget_mb=0, draws=1).batch([0, 3]), first
    )
    with pytest.raises(AssertionError, match="encoded again"):  # another tokenizer's digest is another file
        source(ground, dataset, tokenizer, tmp_path, digest="other")


def test_a_split_is_not_encoded_for_a_few_windows(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, tmp_path: Path
) -> None:
    assert isinstance(
        source(ground, dataset, tokenizer, tmp_path, draws=dataset.count("train") - 1), LiveTokens
    )
    assert isinstance(
        source(ground, dataset, tokenizer, tmp_path, draws=dataset.count("train")), StoredTokens
    )


def test_encoding_that_is_stopped_leaves_no_tokens_and_starts_again(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, tmp_path: Path
) -> None:
    count, told = dataset.count("train"), []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "tokens" / "d"
    with pytest.raises(KeyboardInterrupt):
        source(ground, dataset, tokenizer, tmp_path, progress=stop)
    assert told == [(16, count), (32, count)]
    assert not (folder / "train.npy").exists()
    (folder / ".train.npy.killed.tmp").write_bytes(b"what a killed process leaves")
    source(ground, dataset, tokenizer, tmp_path, progress=lambda *_: told.append(_))
    assert told[-1] == (count, count)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "train.npy"]


def test_tokens_of_another_shape_are_refused(
    ground: Ground, dataset: WindowDataset, tokenizer: KronosTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokens" / "d" / "train.npy"
    source(ground, dataset, tokenizer, tmp_path)
    np.save(path, np.zeros((3, 2), np.uint16))
    with pytest.raises(DataError, match=r"expected uint16 .* found uint16 \(3, 2\); delete that file"):
        source(ground, dataset, tokenizer, tmp_path)


def test_what_comes_after_the_lookback_does_not_change_the_normalised_lookback(
    dataset: WindowDataset,
) -> None:
    windows = dataset.batch("train", [0, 5])
    changed = windows.features.clone()
    changed[:, dataset.lookback :] *= 7
    other = Windows(
        features=changed, stamps=windows.stamps, series=windows.series, open_time=windows.open_time
    )
    before, after = normalised(dataset, windows, CPU), normalised(dataset, other, CPU)
    assert torch.equal(before[:, : dataset.lookback], after[:, : dataset.lookback])
    assert not torch.equal(before, after)
