"""Where weights come from: the Hub at pinned revisions, a folder, or a seed; and what belongs together."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kronos_model.config import PRESETS, PredictorConfig, Preset, TokenizerConfig, check_bits
from kronos_model.errors import DataError, MismatchedPair, ModelError
from kronos_model.files import METADATA_FILE, model_digest, read_json, write_json
from kronos_model.predictor import Kronos
from kronos_model.pretrained import fetch_repository
from kronos_model.tokenizer import KronosTokenizer

__all__ = [
    "Lineage",
    "MadeFor",
    "ModelPair",
    "check_horizon",
    "check_pair",
    "lineage_of",
    "load_pair",
    "made_for",
    "preset_of",
    "read_metadata",
    "resolve_pair",
    "scratch_pair",
    "write_metadata",
]

METADATA_VERSION = 1
_SCRATCH_FILE = "scratch.json"  # beside the two parts of a pair of random weights
_HUB_CACHE = "models--NeoQuasar--Kronos-"  # how the Hub's cache names the folders of Kronos's own checkpoints

Lineage = Literal["kronos", "scratch", "unknown"]
"""What weights descend from: a checkpoint of Kronos's own, random weights, or nobody has written it down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPair:
    """A tokenizer and a predictor that belong together, as folders."""

    tokenizer: Path
    predictor: Path
    tokenizer_digest: str
    predictor_digest: str
    origin: str
    """Where the weights came from, for people."""


def resolve_pair(preset: Preset, source: str) -> ModelPair:
    """The pair at `source`: "pretrained" for the preset's released weights, or a folder with both parts."""
    if source == "pretrained":
        return _released(preset)
    folder = Path(source)
    parts = (folder / "tokenizer", folder / "predictor")
    if missing := [part.name for part in parts if not part.is_dir()]:
        raise ModelError(
            f"{source} lacks the folder {' and '.join(missing)}: "
            'give "pretrained" or a folder that holds tokenizer/ and predictor/.'
        )
    return _pair(*parts, origin=str(folder))


def _released(preset: Preset) -> ModelPair:
    if preset.tokenizer_id is None or preset.predictor_id is None:
        released = ", ".join(name for name, one in PRESETS.items() if one.predictor_id)
        raise ModelError(f"{preset.name} has no released weights: start it from scratch or use {released}.")
    tokenizer = fetch_repository(preset.tokenizer_id, preset.tokenizer_revision)
    predictor = fetch_repository(preset.predictor_id, preset.predictor_revision)
    first = f"{preset.predictor_id}@{preset.predictor_revision}"
    second = f"{preset.tokenizer_id}@{preset.tokenizer_revision}"
    return _pair(tokenizer, predictor, origin=f"{first} with {second}")


def scratch_pair(preset: Preset, folder: Path, seed: int) -> ModelPair:
    """Random weights of `seed` under `folder`; what is there already is used as it is."""
    tokenizer, predictor = folder / "tokenizer", folder / "predictor"
    with torch.random.fork_rng(devices=[]):
        if not tokenizer.exists():
            torch.manual_seed(seed)
            KronosTokenizer(preset.tokenizer).save_pretrained(tokenizer)
        if not predictor.exists():
            torch.manual_seed(seed + 1)
            Kronos(preset.predictor).save_pretrained(predictor)
    pair = _pair(tokenizer, predictor, origin=f"{preset.name} from scratch, seed {seed}")
    if _configs(tokenizer, predictor) != (preset.tokenizer, preset.predictor):
        raise ModelError(
            f"{folder} holds another model than {preset.name}: delete it or choose another folder."
        )
    if not (mark := folder / _SCRATCH_FILE).exists():
        write_json(mark, {"preset": preset.name, "seed": seed})
    return pair


def load_pair(tokenizer: Path, predictor: Path) -> tuple[KronosTokenizer, Kronos]:
    """Both models in evaluation mode; a pair that does not belong together is refused."""
    check_pair(tokenizer, predictor)
    return KronosTokenizer.from_pretrained(tokenizer), Kronos.from_pretrained(predictor)


def check_pair(tokenizer: Path, predictor: Path) -> None:
    """Refuse a pair by token sizes, by the digest recorded in training, or by the released pairings.

    Shapes do not tell: every released predictor accepts the tokens of every released tokenizer.
    """
    ours, theirs = _configs(tokenizer, predictor)
    check_bits(ours, theirs, makes=tokenizer, reads=predictor)
    metadata = read_metadata(predictor)
    recorded = metadata.get("tokenizer_digest") if metadata else None
    if recorded is not None:
        if recorded != (found := model_digest(tokenizer)):
            raise MismatchedPair(
                f"{predictor} was trained with tokenizer {recorded}, {tokenizer} is {found}: "
                "give the tokenizer that it was trained with."
            )
        return
    preset = preset_of(theirs)
    if preset and preset.tokenizer != ours and ours in [one.tokenizer for one in PRESETS.values()]:
        raise MismatchedPair(
            f"{predictor} is Kronos {preset.name}, made for {preset.tokenizer_id or 'its own tokenizer'}: "
            f"give that tokenizer instead of {tokenizer}."
        )


def preset_of(predictor: PredictorConfig) -> Preset | None:
    """The preset of this predictor's shape, or None where it has none."""
    return next((preset for preset in PRESETS.values() if preset.predictor == predictor), None)


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """What kronos_nightly.json in a model folder says; None where there is none, as in upstream's folders."""
    path = Path(folder) / METADATA_FILE
    if not path.exists():
        return None
    metadata = read_json(path)
    if metadata.get("version") != METADATA_VERSION:
        raise ModelError(
            f"{path} must have version {METADATA_VERSION}, found {metadata.get('version')!r}: "
            "use the release that wrote it."
        )
    return metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeFor:
    """What a model was trained to see and to say."""

    interval: str
    lookback: int
    horizon: int


def made_for(folder: Path) -> MadeFor | None:
    """What the model in a folder was made for; None where nothing is recorded, as in upstream's folders."""
    metadata = read_metadata(folder)
    if metadata is None:
        return None
    if missing := [one.name for one in fields(MadeFor) if one.name not in metadata]:
        raise ModelError(
            f"Expected {' and '.join(missing)} in {METADATA_FILE} of {folder}, found none; promote a model that a "
            "night has trained."
        )
    return MadeFor(**{one.name: metadata[one.name] for one in fields(MadeFor)})


def check_horizon(asked: int, made: int) -> None:
    """DataError where more candles are asked for than a model was made to forecast; fewer are their beginning."""
    if asked > made:
        raise DataError(
            f"Expected a horizon of at most the {made} candles that the model was made for, found {asked}; ask for "
            "fewer, or train a model for more."
        )


def lineage_of(folder: Path) -> Lineage:
    """What the weights in a model folder descend from: as training recorded it, or by where they came from."""
    recorded = (read_metadata(folder) or {}).get("training", {}).get("lineage")
    if recorded is not None:
        if recorded not in get_args(Lineage):
            raise ModelError(
                f"the lineage in {folder / METADATA_FILE} must be one of {', '.join(get_args(Lineage))}, found "
                f"{recorded!r}: use the release that wrote it."
            )
        return recorded  # type: ignore[no-any-return]  # it was looked up just now
    if any(part.startswith(_HUB_CACHE) for part in folder.parts):
        return "kronos"
    return "scratch" if (folder.parent / _SCRATCH_FILE).exists() else "unknown"


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write kronos_nightly.json, what upstream's config.json has no key for, into a model folder."""
    write_json(Path(folder) / METADATA_FILE, {"version": METADATA_VERSION, **metadata})


def _pair(tokenizer: Path, predictor: Path, *, origin: str) -> ModelPair:
    check_pair(tokenizer, predictor)
    return ModelPair(
        tokenizer=tokenizer,
        predictor=predictor,
        tokenizer_digest=model_digest(tokenizer),
        predictor_digest=model_digest(predictor),
        origin=origin,
    )


def _configs(tokenizer: Path, predictor: Path) -> tuple[TokenizerConfig, PredictorConfig]:
    first, second = Path(tokenizer) / "config.json", Path(predictor) / "config.json"
    return (
        TokenizerConfig.from_dict(read_json(first), origin=str(first)),
        PredictorConfig.from_dict(read_json(second), origin=str(second)),
    )
