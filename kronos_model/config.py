"""Architecture settings under upstream's config.json keys, and the four presets."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from kronos_model.errors import ModelError

__all__ = ["PRESETS", "PredictorConfig", "Preset", "TokenizerConfig"]

log = logging.getLogger(__name__)

DEPENDENCY_HEADS = 4  # upstream's dependency layer has four heads at every size
MAX_BITS = 16  # token halves are stored as uint16


class _Keyed:
    """Conversion from and to the keys of config.json."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, origin: str) -> Self:
        """Check and convert what `origin` (a file) holds; keys that upstream does not know are ignored."""
        kinds = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
        missing = sorted(kinds.keys() - values.keys())
        if missing:
            raise ModelError(f"{origin} lacks {', '.join(missing)}: it is not the config of a {cls._part()}.")
        if extra := sorted(values.keys() - kinds.keys()):
            log.warning("%s: ignored unknown keys %s", origin, ", ".join(extra))
        try:
            return cls(**{name: _typed(name, values[name], kind) for name, kind in kinds.items()})
        except ValueError as error:
            raise ModelError(f"{origin}: {error}") from error

    @classmethod
    def _part(cls) -> str:
        return cls.__name__.removesuffix("Config").lower()


def _typed(name: str, value: object, kind: object) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", kind)
        raise ValueError(f"{name} must be {wanted}, found {value!r}: correct it.")
    return value


def _check_positive(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(config, name)}: raise it.")


def _check_shares(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"{name} must be in [0, 1), found {getattr(config, name)}: lower it.")


def _check_heads(name: str, heads: int, d_model: int) -> None:
    if d_model % (2 * heads):
        raise ValueError(
            f"d_model must be a multiple of {2 * heads} (2 x {heads} {name}, rotary halves), "
            f"found {d_model}: change d_model or {name}."
        )


def _check_bits(s1_bits: int, s2_bits: int) -> None:
    for name, bits in (("s1_bits", s1_bits), ("s2_bits", s2_bits)):
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"{name} must be in 1..{MAX_BITS}, found {bits}: change it.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(_Keyed):
    """Shape and loss weights of a KronosTokenizer."""

    d_in: int = 6
    """Features of a bar: open, high, low, close, volume, amount."""
    d_model: int = 256
    """Width of the encoder and the decoder."""
    n_heads: int = 4
    """Attention heads."""
    ff_dim: int = 512
    """Width of the feed-forward layers."""
    n_enc_layers: int = 4
    """Encoder layers; as upstream counts, one fewer block is built."""
    n_dec_layers: int = 4
    """Decoder layers; as upstream counts, one fewer block is built."""
    ffn_dropout_p: float = 0.0
    """Dropout after a feed-forward layer, share."""
    attn_dropout_p: float = 0.0
    """Dropout on attention weights, share."""
    resid_dropout_p: float = 0.0
    """Dropout after an attention layer, share."""
    s1_bits: int = 10
    """Bits of the coarse token."""
    s2_bits: int = 10
    """Bits of the fine token."""
    beta: float = 0.05
    """Weight of the quantiser's commitment loss."""
    gamma0: float = 1.0
    """Weight of the entropy per bar, which is minimised."""
    gamma: float = 1.1
    """Weight of the codebook entropy, which is maximised."""
    zeta: float = 0.05
    """Weight of both entropies together."""
    group_size: int = 4
    """Bits per group of the codebook; divides s1_bits + s2_bits and marks a checkpoint, no loss uses it."""

    def __post_init__(self) -> None:
        _check_positive(
            self, ("d_in", "d_model", "n_heads", "ff_dim", "n_enc_layers", "n_dec_layers", "group_size")
        )
        _check_shares(self, ("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p"))
        _check_bits(self.s1_bits, self.s2_bits)
        _check_heads("n_heads", self.n_heads, self.d_model)
        bits = self.s1_bits + self.s2_bits
        if bits % self.group_size:
            raise ValueError(
                f"group_size must divide s1_bits + s2_bits = {bits}, found {self.group_size}: change it."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig(_Keyed):
    """Shape of a Kronos predictor."""

    s1_bits: int = 10
    """Bits of the coarse token."""
    s2_bits: int = 10
    """Bits of the fine token."""
    n_layers: int = 8
    """Transformer blocks."""
    d_model: int = 512
    """Width of the trunk."""
    n_heads: int = 8
    """Attention heads of the trunk; the dependency layer always has four."""
    ff_dim: int = 1024
    """Width of the feed-forward layers."""
    ffn_dropout_p: float = 0.0
    """Dropout after a feed-forward layer, share."""
    attn_dropout_p: float = 0.0
    """Dropout on attention weights, share."""
    resid_dropout_p: float = 0.0
    """Dropout after an attention layer, share."""
    token_dropout_p: float = 0.0
    """Dropout on token embeddings, share."""
    learn_te: bool = True
    """Learn the calendar embeddings; else they are fixed sinusoids."""

    def __post_init__(self) -> None:
        _check_positive(self, ("n_layers", "d_model", "n_heads", "ff_dim"))
        _check_shares(self, ("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p"))
        _check_bits(self.s1_bits, self.s2_bits)
        _check_heads("n_heads", self.n_heads, self.d_model)
        _check_heads("dependency heads", DEPENDENCY_HEADS, self.d_model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A tokenizer and a predictor that belong together, and where their released weights are."""

    name: str
    """The preset's name."""
    tokenizer: TokenizerConfig
    """Shape of the tokenizer."""
    predictor: PredictorConfig
    """Shape of the predictor."""
    max_context: int
    """Longest window that the predictor was trained on, bars."""
    tokenizer_id: str | None = None
    """Hub repository of the tokenizer's weights; none for a preset without released weights."""
    tokenizer_revision: str | None = None
    """Commit of that repository."""
    predictor_id: str | None = None
    """Hub repository of the predictor's weights."""
    predictor_revision: str | None = None
    """Commit of that repository."""


_TOKENIZER_BASE = TokenizerConfig(group_size=4)
_TOKENIZER_2K = TokenizerConfig(group_size=5)
_TOKENIZER_BASE_REVISION = "0e0117387f39004a9016484a186a908917e22426"

# tiny is ours, for tests and the demo: under 100,000 parameters in all. The rest are the released
# configs; the revisions pin the weights they were read with.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            tokenizer=TokenizerConfig(
                d_model=32,
                n_heads=4,
                ff_dim=96,
                n_enc_layers=2,
                n_dec_layers=2,
                s1_bits=6,
                s2_bits=6,
                group_size=4,
            ),
            predictor=PredictorConfig(s1_bits=6, s2_bits=6, n_layers=3, d_model=40, n_heads=4, ff_dim=64),
            max_context=512,
        ),
        Preset(
            name="mini",
            tokenizer=_TOKENIZER_2K,
            predictor=PredictorConfig(
                n_layers=4, d_model=256, n_heads=4, ff_dim=512, ffn_dropout_p=0.2, resid_dropout_p=0.2
            ),
            max_context=2048,
            tokenizer_id="NeoQuasar/Kronos-Tokenizer-2k",
            tokenizer_revision="26966d0035065a0cae0ebad7af8ece35bc1fb51c",
            predictor_id="NeoQuasar/Kronos-mini",
            predictor_revision="f4e68697d9d5aed55cef5c96aabc3376bcad9f81",
        ),
        Preset(
            name="small",
            tokenizer=_TOKENIZER_BASE,
            predictor=PredictorConfig(
                n_layers=8,
                d_model=512,
                n_heads=8,
                ff_dim=1024,
                ffn_dropout_p=0.25,
                attn_dropout_p=0.1,
                resid_dropout_p=0.25,
                token_dropout_p=0.1,
            ),
            max_context=512,
            tokenizer_id="NeoQuasar/Kronos-Tokenizer-base",
            tokenizer_revision=_TOKENIZER_BASE_REVISION,
            predictor_id="NeoQuasar/Kronos-small",
            predictor_revision="901c26c1332695a2a8f243eb2f37243a37bea320",
        ),
        Preset(
            name="base",
            tokenizer=_TOKENIZER_BASE,
            predictor=PredictorConfig(
                n_layers=12, d_model=832, n_heads=16, ff_dim=2048, ffn_dropout_p=0.2, resid_dropout_p=0.2
            ),
            max_context=512,
            tokenizer_id="NeoQuasar/Kronos-Tokenizer-base",
            tokenizer_revision=_TOKENIZER_BASE_REVISION,
            predictor_id="NeoQuasar/Kronos-base",
            predictor_revision="2b554741eca47781b64468546e77fef3e85130e6",
        ),
    )
}
