"""Architecture settings under upstream's config.json keys, and the four presets."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Self, get_type_hints

from kronos_model.errors import MismatchedPair, ModelError
from kronos_model.settings import Bounds, Count, NotNegative, settings

__all__ = ["PRESETS", "PredictorConfig", "Preset", "TokenizerConfig", "check_bits"]

log = logging.getLogger(__name__)

DEPENDENCY_HEADS = 4  # upstream's dependency layer has four heads at every size

Width = Annotated[int, Bounds(ge=1, le=65_536)]
Layers = Annotated[int, Bounds(ge=1, le=1_024)]
Bits = Annotated[int, Bounds(ge=1, le=16)]  # token halves are stored as uint16
Dropout = Annotated[float, Bounds(ge=0, lt=1)]


class _Keyed:
    """Conversion from and to the keys of config.json."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, origin: str) -> Self:
        """Check and convert what `origin` (a file) holds; keys that upstream does not know are ignored."""
        kinds = get_type_hints(cls)
        missing = sorted(kinds.keys() - values.keys())
        if missing:
            part = cls.__name__.removesuffix("Config").lower()
            raise ModelError(f"{origin} lacks {', '.join(missing)}: it is not the config of a {part}.")
        if extra := sorted(values.keys() - kinds.keys()):
            log.warning("%s: ignored unknown keys %s", origin, ", ".join(extra))
        try:
            return cls(**{name: _typed(values[name], kind) for name, kind in kinds.items()})
        except ValueError as error:
            raise ModelError(f"{origin}: {error}") from error


def _typed(value: object, kind: object) -> object:
    """A whole number where a float is wanted, as one, so that config.json is written back as it is everywhere."""
    return float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value


def _check_heads(name: str, heads: int, d_model: int) -> None:
    if d_model % (2 * heads):
        raise ValueError(
            f"d_model must be a multiple of {2 * heads} (2 x {heads} {name}, rotary halves), "
            f"found {d_model}: change d_model or {name}."
        )


@settings
class TokenizerConfig(_Keyed):
    """Shape and loss weights of a KronosTokenizer."""

    d_in: Width = 6
    """Features of a bar: open, high, low, close, volume, amount."""
    d_model: Width = 256
    """Width of the encoder and the decoder."""
    n_heads: Width = 4
    """Attention heads."""
    ff_dim: Width = 512
    """Width of the feed-forward layers."""
    n_enc_layers: Layers = 4
    """Encoder layers; as upstream counts, one fewer block is built."""
    n_dec_layers: Layers = 4
    """Decoder layers; as upstream counts, one fewer block is built."""
    ffn_dropout_p: Dropout = 0.0
    """Dropout after a feed-forward layer, share."""
    attn_dropout_p: Dropout = 0.0
    """Dropout on attention weights, share."""
    resid_dropout_p: Dropout = 0.0
    """Dropout after an attention layer, share."""
    s1_bits: Bits = 10
    """Bits of the coarse token."""
    s2_bits: Bits = 10
    """Bits of the fine token."""
    beta: NotNegative = 0.05
    """Weight of the quantiser's commitment loss."""
    gamma0: NotNegative = 1.0
    """Weight of the entropy per bar, which is minimised."""
    gamma: NotNegative = 1.1
    """Weight of the codebook entropy, which is maximised."""
    zeta: NotNegative = 0.05
    """Weight of both entropies together."""
    group_size: Count = 4
    """Bits per group of the codebook; divides s1_bits + s2_bits and marks a checkpoint, no loss uses it."""

    def __post_init__(self) -> None:
        _check_heads("n_heads", self.n_heads, self.d_model)
        bits = self.s1_bits + self.s2_bits
        if bits % self.group_size:
            raise ValueError(
                f"group_size must divide s1_bits + s2_bits = {bits}, found {self.group_size}: change it."
            )


@settings
class PredictorConfig(_Keyed):
    """Shape of a Kronos predictor."""

    s1_bits: Bits = 10
    """Bits of the coarse token."""
    s2_bits: Bits = 10
    """Bits of the fine token."""
    n_layers: Layers = 8
    """Transformer blocks."""
    d_model: Width = 512
    """Width of the trunk."""
    n_heads: Width = 8
    """Attention heads of the trunk; the dependency layer always has four."""
    ff_dim: Width = 1024
    """Width of the feed-forward layers."""
    ffn_dropout_p: Dropout = 0.0
    """Dropout after a feed-forward layer, share."""
    attn_dropout_p: Dropout = 0.0
    """Dropout on attention weights, share."""
    resid_dropout_p: Dropout = 0.0
    """Dropout after an attention layer, share."""
    token_dropout_p: Dropout = 0.0
    """Dropout on token embeddings, share."""
    learn_te: bool = True
    """Learn the calendar embeddings; else they are fixed sinusoids."""

    def __post_init__(self) -> None:
        _check_heads("n_heads", self.n_heads, self.d_model)
        _check_heads("dependency heads", DEPENDENCY_HEADS, self.d_model)


def check_bits(
    tokenizer: TokenizerConfig, predictor: PredictorConfig, *, makes: object, reads: object
) -> None:
    """MismatchedPair where the predictor, called `reads`, does not read the tokens that `makes` makes."""
    made, read = (f"{one.s1_bits}+{one.s2_bits}" for one in (tokenizer, predictor))
    if made != read:
        raise MismatchedPair(
            f"{reads} reads tokens of {read} bits, {makes} makes {made}: give the tokenizer that it was trained with."
        )


@settings
class Preset:
    """A tokenizer and a predictor that belong together, and where their released weights are."""

    name: str
    tokenizer: TokenizerConfig
    predictor: PredictorConfig
    max_context: Count
    """Longest window that the predictor was trained on, bars."""
    tokenizer_id: str | None = None
    """Hub repository of the weights, and their commit; none for a preset without released ones."""
    tokenizer_revision: str | None = None
    predictor_id: str | None = None
    predictor_revision: str | None = None


_TOKENIZER_BASE = "NeoQuasar/Kronos-Tokenizer-base"
_TOKENIZER_BASE_REVISION = "0e0117387f39004a9016484a186a908917e22426"

# tiny is ours, for tests and the demo: under 100,000 parameters in all. The rest are the released
# configs; the revisions pin the weights they were read with.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            tokenizer=TokenizerConfig(
                d_model=32, ff_dim=96, n_enc_layers=2, n_dec_layers=2, s1_bits=6, s2_bits=6
            ),
            predictor=PredictorConfig(s1_bits=6, s2_bits=6, n_layers=3, d_model=40, n_heads=4, ff_dim=64),
            max_context=512,
        ),
        Preset(
            name="mini",
            tokenizer=TokenizerConfig(group_size=5),
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
            tokenizer=TokenizerConfig(),
            predictor=PredictorConfig(
                ffn_dropout_p=0.25, attn_dropout_p=0.1, resid_dropout_p=0.25, token_dropout_p=0.1
            ),
            max_context=512,
            tokenizer_id=_TOKENIZER_BASE,
            tokenizer_revision=_TOKENIZER_BASE_REVISION,
            predictor_id="NeoQuasar/Kronos-small",
            predictor_revision="901c26c1332695a2a8f243eb2f37243a37bea320",
        ),
        Preset(
            name="base",
            tokenizer=TokenizerConfig(),
            predictor=PredictorConfig(
                n_layers=12, d_model=832, n_heads=16, ff_dim=2048, ffn_dropout_p=0.2, resid_dropout_p=0.2
            ),
            max_context=512,
            tokenizer_id=_TOKENIZER_BASE,
            tokenizer_revision=_TOKENIZER_BASE_REVISION,
            predictor_id="NeoQuasar/Kronos-base",
            predictor_revision="2b554741eca47781b64468546e77fef3e85130e6",
        ),
    )
}
