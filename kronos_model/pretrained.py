"""Loading and saving a model folder: config.json and model.safetensors, never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # its client's
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kronos_model.config import PredictorConfig, TokenizerConfig
from kronos_model.errors import ModelError, UnreachableModel
from kronos_model.files import METADATA_FILE, MODEL_FILES, read_json, replace_directory, replace_file

__all__ = ["Pretrained", "fetch_repository"]

ConfigT = TypeVar("ConfigT", TokenizerConfig, PredictorConfig)

TIMEOUT_S = 20.0


class Pretrained(nn.Module, Generic[ConfigT]):
    """A module that is built from its config alone."""

    config_class: ClassVar[type[Any]]
    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Load a folder, or a Hub repository at `revision`, in evaluation mode on the CPU in float32."""
        folder = Path(source)
        if not folder.is_dir():
            if revision is None and folder.is_absolute():
                raise ModelError(f"{source} is not a folder: give a folder with {' and '.join(MODEL_FILES)}.")
            folder = fetch_repository(str(source), revision)
        weights = folder / "model.safetensors"
        config = cls.config_class.from_dict(read_json(folder / "config.json"), origin=f"{folder}/config.json")
        if not weights.is_file():
            raise ModelError(
                f"{folder} holds no model.safetensors: convert its weights; pickles are never loaded."
            )
        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise ModelError(f"{weights} is damaged ({error}): download or write it again.") from error
        with torch.device("meta"):  # no memory, no random numbers
            model = cls(config)
        model.load_state_dict(_fitting(tensors, model.state_dict(), weights), assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, which upstream's class loads too; other files stay."""
        folder = Path(folder)
        if folder.is_dir():
            with replace_file(folder / "model.safetensors") as path:
                self._write_weights(path)
            with replace_file(folder / "config.json") as path:
                self._write_config(path)
            return
        with replace_directory(folder) as directory:
            self._write_weights(directory / "model.safetensors")
            self._write_config(directory / "config.json")

    def _write_weights(self, path: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"format": "pt"})

    def _write_config(self, path: Path) -> None:
        path.write_text(json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fitting(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The found tensors in the wanted types; another set of names or shapes is refused."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is unknown" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{origin} does not fit its config.json ({'; '.join(problems[:3])}{more}): "
            "give the weights and the config of the same model."
        )
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{origin} holds NaN or infinity in {name}: download or train it again.")
    return {name: found[name].to(tensor.dtype, copy=True) for name, tensor in wanted.items()}


def fetch_repository(repository: str, revision: str | None) -> Path:
    """Folder of a Hub repository at a revision; a commit that was fetched before needs no network.

    One question first: it fails at once where nobody answers, the downloads would retry for 24 s.
    """
    try:
        if revision and (cached := _cached(repository, revision)):
            return cached
        hub = HfApi()
        info = hub.model_info(repository, revision=revision, timeout=TIMEOUT_S)
        present = {sibling.rfilename for sibling in info.siblings or []}
        if missing := [name for name in MODEL_FILES if name not in present]:
            raise ModelError(
                f"{repository} at {revision or 'main'} lacks {' and '.join(missing)}: use another."
            )
        for name in (METADATA_FILE, *MODEL_FILES):  # the weights last: where they are, all is
            if name in present:
                path = hub.hf_hub_download(repository, name, revision=info.sha)
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is neither a folder nor a Hub repository: correct it.") from error
    except (HTTPError, OSError) as error:
        raise UnreachableModel(
            f"{repository} at revision {revision or 'main'} could not be fetched from {constants.ENDPOINT} "
            f"({_first_line(error)}): check the network or HF_ENDPOINT, or give a folder."
        ) from error
    return Path(path).parent


def _cached(repository: str, commit: str) -> Path | None:
    """The complete snapshot of a commit in the Hub's cache; a branch has none, it may have moved."""
    found = try_to_load_from_cache(repository, MODEL_FILES[-1], revision=commit)
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder and folder.name == commit else None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
