"""Configs, presets, files and the package's lazy names."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kronos_model.config import PRESETS, PredictorConfig, TokenizerConfig
from kronos_model.errors import ModelError
from kronos_model.files import model_digest, replace_directory, replace_file, settle_directory, write_json
from kronos_model.predictor import Kronos
from kronos_model.tokenizer import KronosTokenizer


def parameters(name: str) -> tuple[int, int]:
    preset = PRESETS[name]
    with torch.device("meta"):
        models = (KronosTokenizer(preset.tokenizer), Kronos(preset.predictor))
    first, second = (sum(p.numel() for p in model.parameters()) for model in models)
    return first, second


@pytest.mark.parametrize(
    ("name", "predictor"), [("mini", 4_108_032), ("small", 24_741_376), ("base", 102_310_592)]
)
def test_the_presets_have_the_published_sizes(name: str, predictor: int) -> None:
    assert parameters(name) == (3_958_042, predictor)


def test_tiny_stays_under_a_hundred_thousand_parameters() -> None:
    assert sum(parameters("tiny")) < 100_000


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_config_survives_its_json(preset) -> None:
    for config in (preset.tokenizer, preset.predictor):
        values = json.loads(json.dumps(config.to_dict()))
        assert type(config).from_dict(values, origin="config.json") == config


def test_a_config_file_that_lacks_a_key_is_named_with_the_key() -> None:
    values = PRESETS["tiny"].tokenizer.to_dict()
    del values["group_size"]
    with pytest.raises(
        ModelError, match=r"here/config\.json lacks group_size: it is not the config of a tokenizer"
    ):
        TokenizerConfig.from_dict(values, origin="here/config.json")


def test_a_config_file_with_a_wrong_type_is_refused_and_a_foreign_key_is_not() -> None:
    values = PRESETS["tiny"].predictor.to_dict()
    assert (
        PredictorConfig.from_dict({**values, "model_type": "kronos"}, origin="x") == PRESETS["tiny"].predictor
    )
    assert PredictorConfig.from_dict({**values, "ffn_dropout_p": 0}, origin="x").ffn_dropout_p == 0.0
    with pytest.raises(ModelError, match=r"x: n_layers: expected int \(.*\), found '3'; correct it"):
        PredictorConfig.from_dict({**values, "n_layers": "3"}, origin="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 5}, "group_size must divide s1_bits \\+ s2_bits = 12, found 5"),
        ({"d_model": 36}, "d_model must be a multiple of 8"),
        ({"s1_bits": 17}, "s1_bits: expected from 1 to 16, found 17; lower it"),
        ({"ffn_dropout_p": 1.0}, "ffn_dropout_p: expected at least 0 and below 1, found 1.0; lower it"),
        ({"ff_dim": 2**62}, "ff_dim: expected from 1 to 65536, found 4611686018427387904; lower it"),
        ({"beta": float("nan")}, r"beta: expected float \(at least 0\), found nan; correct it"),
        ({"n_heads": 0}, "n_heads: expected from 1 to 65536, found 0; raise it"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["tiny"].tokenizer, **change)


def test_the_dependency_layer_bounds_the_predictor_width() -> None:
    with pytest.raises(ValueError, match="4 dependency heads"):
        replace(PRESETS["tiny"].predictor, n_heads=2, d_model=36)


def test_importing_the_package_costs_no_torch_and_offers_its_names() -> None:
    code = (
        "import sys, kronos_model\n"
        "from kronos_model.features import calendar_stamps\n"
        "assert 'torch' not in sys.modules\n"
        "from kronos_model import Forecaster, Kronos, KronosTokenizer\n"
        "assert Kronos.__module__ == 'kronos_model.predictor'\n"
        "assert not hasattr(kronos_model, 'Nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"a": 1})
    with pytest.raises(ZeroDivisionError), replace_file(target) as path:
        path.write_text(str(1 / 0))
    with pytest.raises(ValueError, match="Out of range"):
        write_json(target, float("nan"))
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for value in ("1", "2"):
        with replace_directory(target) as folder:
            (folder / value).write_text(value)
    with pytest.raises(ZeroDivisionError), replace_directory(target) as folder:
        (folder / "3").write_text(str(1 / 0))
    assert [path.name for path in target.iterdir()] == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_directory_moved_aside_by_a_dead_process_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with replace_directory(target) as folder:
        (folder / "1").write_text("1")
    target.rename(tmp_path / ".best.previous")  # where a death between the two moves leaves it
    settle_directory(target)
    assert [path.name for path in target.iterdir()] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_cannot_be_written_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match=r"value\.json cannot be written, the disk is full: free some space"):
        write_json(tmp_path / "value.json", {})
    assert not list(tmp_path.iterdir())


def test_the_digest_follows_both_files_and_misses_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"a")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"b")
    first = model_digest(tmp_path)
    assert first == "fb8e20fc2e4c3f24"  # sha256 of b"ab"
    (tmp_path / "kronos_nightly.json").write_bytes(b"c")
    assert model_digest(tmp_path) == first
