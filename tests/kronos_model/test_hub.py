"""Loading and saving folders, pairs that belong together, and the Hub."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from kronos_model.config import PRESETS, Preset
from kronos_model.errors import MismatchedPair, ModelError, UnreachableModel
from kronos_model.files import model_digest
from kronos_model.hub import (
    ModelPair,
    check_pair,
    lineage_of,
    load_pair,
    read_metadata,
    resolve_pair,
    scratch_pair,
    write_metadata,
)
from kronos_model.predictor import Kronos
from kronos_model.pretrained import fetch_repository
from kronos_model.tokenizer import KronosTokenizer
from tests.support.loopback_hub import Fault, LoopbackHub

ROOT = Path(__file__).resolve().parents[2]

TINY = PRESETS["tiny"]


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return scratch_pair(TINY, tmp_path / "pair", seed=5)


def test_saving_and_loading_keeps_every_bit(pair: ModelPair, tmp_path: Path) -> None:
    for kind, folder in ((KronosTokenizer, pair.tokenizer), (Kronos, pair.predictor)):
        model = kind.from_pretrained(folder)
        assert not model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        model.save_pretrained(tmp_path / "copy")
        assert model_digest(tmp_path / "copy") == model_digest(folder)


def test_loading_draws_no_random_numbers(pair: ModelPair) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load_pair(pair.tokenizer, pair.predictor)
    scratch_pair(TINY, pair.tokenizer.parent.with_name("other"), seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_does_not_wake_torch_s_compiler(pair: ModelPair) -> None:
    """Its import takes a second or two, many times what the weights do."""
    program = (
        "import sys; from kronos_model import Kronos, KronosTokenizer;"
        f"KronosTokenizer.from_pretrained({str(pair.tokenizer)!r}); Kronos.from_pretrained({str(pair.predictor)!r});"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_saving_over_a_model_keeps_what_else_is_there(pair: ModelPair) -> None:
    write_metadata(pair.predictor, {"part": "predictor"})
    other = Kronos(TINY.predictor)
    other.save_pretrained(pair.predictor)
    assert read_metadata(pair.predictor) == {"version": 1, "part": "predictor"}
    assert torch.equal(Kronos.from_pretrained(pair.predictor).norm.weight, other.norm.weight)
    assert sorted(path.name for path in pair.predictor.iterdir()) == [
        "config.json",
        "kronos_nightly.json",
        "model.safetensors",
    ]


def test_a_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    pairs = [scratch_pair(TINY, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert pairs[0].tokenizer_digest == pairs[1].tokenizer_digest != pairs[2].tokenizer_digest
    assert pairs[0].predictor_digest == pairs[1].predictor_digest != pairs[2].predictor_digest


def test_a_scratch_pair_is_made_once(pair: ModelPair) -> None:
    weights = pair.predictor / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert scratch_pair(TINY, pair.predictor.parent, seed=5) == pair
    assert weights.stat().st_mtime_ns == stamp
    other = replace(TINY, name="wider", predictor=replace(TINY.predictor, ff_dim=128))
    with pytest.raises(ModelError, match="holds another model than wider"):
        scratch_pair(other, pair.predictor.parent, seed=5)


def test_a_folder_tells_what_its_weights_descend_from(pair: ModelPair, tmp_path: Path) -> None:
    assert lineage_of(pair.predictor) == "scratch"
    moved = pair.predictor.rename(tmp_path / "predictor")
    assert lineage_of(moved) == "unknown"
    cached = moved.rename(make(tmp_path / "models--NeoQuasar--Kronos-mini" / "snapshots") / "abc")
    assert lineage_of(cached) == "kronos"
    write_metadata(cached, {"training": {"lineage": "scratch"}})  # what training recorded comes first
    assert lineage_of(cached) == "scratch"
    write_metadata(cached, {"training": {"lineage": "royal"}})
    with pytest.raises(ModelError, match="one of kronos, scratch, unknown, found 'royal'"):
        lineage_of(cached)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_half_precision_weights_load_as_float32(pair: ModelPair) -> None:
    path = pair.predictor / "model.safetensors"
    halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in load_file(path).items()}
    save_file(halves, path)
    model = Kronos.from_pretrained(pair.predictor)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.proj_s1.weight, halves["head.proj_s1.weight"].float())


def test_weights_that_do_not_fit_are_named(pair: ModelPair) -> None:
    path = pair.predictor / "model.safetensors"
    tensors = load_file(path)
    tensors["head.proj_s1.weight"] = tensors["head.proj_s1.weight"][:7].clone()
    tensors["stray"] = tensors.pop("norm.weight")
    save_file(tensors, path)
    expected = (
        r"norm\.weight is missing; stray is unknown; head\.proj_s1\.weight is \(7, 40\) instead of \(64, 40\)"
    )
    with pytest.raises(ModelError, match=expected):
        Kronos.from_pretrained(pair.predictor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"holds no model\.safetensors.*pickles are never",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
            r"model\.safetensors is damaged",
        ),
    ],
)
def test_a_damaged_folder_is_explained(pair: ModelPair, damage, message: str) -> None:
    damage(pair.tokenizer)
    with pytest.raises(ModelError, match=message):
        KronosTokenizer.from_pretrained(pair.tokenizer)


def test_weights_that_are_not_numbers_are_refused(pair: ModelPair) -> None:
    path = pair.tokenizer / "model.safetensors"
    tensors = load_file(path)
    tensors["head.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"holds NaN or infinity in head\.bias"):
        KronosTokenizer.from_pretrained(pair.tokenizer)


def test_a_pickle_is_never_opened(pair: ModelPair) -> None:
    (pair.tokenizer / "model.safetensors").unlink()
    torch.save(KronosTokenizer(TINY.tokenizer).state_dict(), pair.tokenizer / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles are never loaded"):
        KronosTokenizer.from_pretrained(pair.tokenizer)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        Kronos.from_pretrained(tmp_path / "nothing")


def test_a_folder_with_both_parts_is_a_pair(pair: ModelPair) -> None:
    folder = pair.tokenizer.parent
    found = resolve_pair(TINY, str(folder))
    assert (found.tokenizer_digest, found.predictor_digest) == (pair.tokenizer_digest, pair.predictor_digest)
    with pytest.raises(ModelError, match="lacks the folder tokenizer and predictor"):
        resolve_pair(TINY, str(folder / "tokenizer"))


def test_tiny_has_nothing_to_download() -> None:
    with pytest.raises(
        ModelError, match="tiny has no released weights: start it from scratch or use mini, small"
    ):
        resolve_pair(TINY, "pretrained")


def test_a_predictor_refuses_a_tokenizer_it_was_not_trained_with(pair: ModelPair, tmp_path: Path) -> None:
    write_metadata(pair.predictor, {"part": "predictor", "tokenizer_digest": pair.tokenizer_digest})
    load_pair(pair.tokenizer, pair.predictor)
    other = scratch_pair(TINY, tmp_path / "other", seed=6)
    with pytest.raises(MismatchedPair, match=f"trained with tokenizer {pair.tokenizer_digest}"):
        load_pair(other.tokenizer, pair.predictor)


def write_config(folder: Path, values: Mapping[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_released_parts_of_different_families_are_refused_by_their_configs(tmp_path: Path) -> None:
    tokenizers = {
        name: write_config(tmp_path / f"{name}-tokenizer", PRESETS[name].tokenizer.to_dict())
        for name in ("mini", "base")
    }
    predictors = {
        name: write_config(tmp_path / name, PRESETS[name].predictor.to_dict())
        for name in ("mini", "small", "base")
    }
    check_pair(tokenizers["mini"], predictors["mini"])
    check_pair(tokenizers["base"], predictors["small"])
    check_pair(tokenizers["base"], predictors["base"])
    for tokenizer, predictor in (("mini", "small"), ("mini", "base"), ("base", "mini")):
        with pytest.raises(
            MismatchedPair, match=f"is Kronos {predictor}, made for NeoQuasar/Kronos-Tokenizer"
        ):
            check_pair(tokenizers[tokenizer], predictors[predictor])
    fewer = PRESETS["mini"].tokenizer.to_dict() | {"s1_bits": 8, "s2_bits": 7}
    with pytest.raises(MismatchedPair, match=r"reads tokens of 10\+10 bits, .* makes 8\+7"):
        check_pair(write_config(tmp_path / "fewer", fewer), predictors["mini"])


def test_metadata_of_another_version_is_refused(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) is None
    (tmp_path / "kronos_nightly.json").write_text('{"version": 2}')
    with pytest.raises(ModelError, match="must have version 1, found 2"):
        read_metadata(tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pinned(tokenizer: str, predictor: str) -> Preset:
    return replace(
        TINY,
        tokenizer_id="maker/tokenizer",
        tokenizer_revision=tokenizer,
        predictor_id="maker/predictor",
        predictor_revision=predictor,
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        template = hub_constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub_constants.ENDPOINT, hub.url)
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_a_pinned_pair_is_fetched_once_and_then_needs_no_hub(pair: ModelPair, hub: LoopbackHub) -> None:
    write_metadata(pair.predictor, {"part": "predictor", "tokenizer_digest": pair.tokenizer_digest})
    tokenizer = hub.add_repository("maker/tokenizer", files_of(pair.tokenizer))
    predictor = hub.add_repository("maker/predictor", files_of(pair.predictor))
    hub.add_repository("maker/predictor", {"model.safetensors": b"a later commit"})
    preset = pinned(tokenizer, predictor)
    found = resolve_pair(preset, "pretrained")
    assert (found.tokenizer_digest, found.predictor_digest) == (pair.tokenizer_digest, pair.predictor_digest)
    assert found.origin == f"maker/predictor@{predictor} with maker/tokenizer@{tokenizer}"
    assert read_metadata(found.predictor) == read_metadata(pair.predictor)
    assert not load_pair(found.tokenizer, found.predictor)[1].training
    asked = len(hub.requests)
    assert asked > 0
    assert resolve_pair(preset, "pretrained") == found
    assert len(hub.requests) == asked


def test_models_load_by_repository_name_and_a_branch_is_looked_up_again(
    pair: ModelPair, hub: LoopbackHub
) -> None:
    first = hub.add_repository("maker/predictor", files_of(pair.predictor))
    before = Kronos.from_pretrained("maker/predictor")
    torch.manual_seed(99)
    Kronos(TINY.predictor).save_pretrained(pair.predictor)
    hub.add_repository("maker/predictor", files_of(pair.predictor))
    after = Kronos.from_pretrained("maker/predictor", revision="main")
    again = Kronos.from_pretrained("maker/predictor", revision=first)
    assert not torch.equal(before.head.proj_s1.weight, after.head.proj_s1.weight)
    assert torch.equal(before.head.proj_s1.weight, again.head.proj_s1.weight)


@pytest.mark.parametrize("file", ["config.json", "kronos_nightly.json", "model.safetensors"])
def test_a_download_that_breaks_off_is_not_taken_for_whole(
    pair: ModelPair, hub: LoopbackHub, file: str
) -> None:
    write_metadata(pair.predictor, {"part": "predictor", "max_context": 64})
    revision = hub.add_repository("maker/predictor", files_of(pair.predictor))
    hub.faults.append(Fault(method="HEAD", path=file, status=403, times=99))
    with pytest.raises(UnreachableModel, match=f"maker/predictor at revision {revision}"):
        Kronos.from_pretrained("maker/predictor", revision=revision)
    hub.faults.clear()
    folder = fetch_repository("maker/predictor", revision)
    assert model_digest(folder) == model_digest(pair.predictor)
    assert read_metadata(folder) == {"version": 1, "part": "predictor", "max_context": 64}


def test_a_revision_that_does_not_exist_is_named(pair: ModelPair, hub: LoopbackHub) -> None:
    revision = hub.add_repository("maker/tokenizer", files_of(pair.tokenizer))
    expected = (
        f"maker/predictor at revision {'0' * 40} could not be fetched from {hub.url} .*HF_ENDPOINT, or give"
    )
    with pytest.raises(UnreachableModel, match=expected):
        resolve_pair(pinned(revision, "0" * 40), "pretrained")
    with pytest.raises(ModelError, match="'no//such:name' is neither a folder nor a Hub repository"):
        Kronos.from_pretrained("no//such:name")


def test_a_repository_without_safe_weights_is_refused(pair: ModelPair, hub: LoopbackHub) -> None:
    files = {"config.json": files_of(pair.tokenizer)["config.json"], "pytorch_model.bin": b"pickle"}
    revision = hub.add_repository("maker/tokenizer", files)
    with pytest.raises(
        ModelError, match=rf"maker/tokenizer at {revision} lacks model\.safetensors: use another"
    ):
        KronosTokenizer.from_pretrained("maker/tokenizer", revision=revision)
    assert hub.count("GET", "pytorch_model") == 0


def test_a_hub_that_does_not_answer_is_one_sentence_at_once(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home")  # of a port that is closed again below
    code = (
        "from kronos_model.config import PRESETS\n"
        "from kronos_model.errors import UnreachableModel\n"
        "from kronos_model.hub import resolve_pair\n"
        "try:\n    resolve_pair(PRESETS['small'], 'pretrained')\n"
        "except UnreachableModel as error:\n    print(error)\n"
    )
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env={**path, **environment}, check=True, capture_output=True, text=True
    )
    assert time.monotonic() - started < 20  # huggingface_hub's own retries take 24 s
    small = PRESETS["small"]
    assert done.stdout.startswith(
        f"{small.tokenizer_id} at revision {small.tokenizer_revision} could not be fetched from {hub.url} ("
    )
    assert done.stdout.endswith("): check the network or HF_ENDPOINT, or give a folder.\n")
    assert done.stdout.count("\n") == 1
