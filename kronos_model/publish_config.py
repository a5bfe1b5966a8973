"""Whether and where models are published, in plain settings: reading them costs no Hub client."""

import re
from collections.abc import Sequence
from string import Formatter
from typing import Literal

from kronos_model.settings import settings

__all__ = ["PublishConfig", "repository_names"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")


@settings
class PublishConfig:
    """Whether and where a night's models are published."""

    policy: Literal["promoted", "always", "never"] = "promoted"
    """Publish what the gate promoted, every night's challenger, or nothing."""
    token_block: str = "hf-token"
    """Prefect Secret block that holds the Hub's token, asked where HF_TOKEN is not set."""
    namespace: str = ""
    """User or organisation on the Hugging Face Hub; empty publishes to the local hub folder alone."""
    tokenizer_name: str = "{recipe}-kronos-tokenizer"
    """Repository of the tokenizer; {recipe} stands for the recipe's name, {symbol} for that of its only series."""
    predictor_name: str = "{recipe}-kronos-predictor"
    """Repository of the predictor; {recipe} stands for the recipe's name, {symbol} for that of its only series."""
    private: bool = True
    """Create the repositories as private ones; those that exist must then be private."""

    def __post_init__(self) -> None:
        if self.namespace and not _is_name(self.namespace):
            raise ValueError(
                f"namespace must be a user or organisation on the Hub, found {self.namespace!r}; "
                "leave it empty to publish locally"
            )
        tokenizer, predictor = repository_names(self, "recipe", ["symbol"])
        if tokenizer == predictor:
            raise ValueError(
                f"tokenizer_name and predictor_name must differ, both are {tokenizer!r}; change one"
            )


def repository_names(config: PublishConfig, recipe: str, symbols: Sequence[str]) -> tuple[str, str]:
    """The names, without namespace, of a tokenizer's and a predictor's repository."""
    return (
        _named("tokenizer_name", config.tokenizer_name, recipe, symbols),
        _named("predictor_name", config.predictor_name, recipe, symbols),
    )


def _named(field: str, template: str, recipe: str, symbols: Sequence[str]) -> str:
    try:
        placeholders = {key for _, key, _, _ in Formatter().parse(template) if key is not None}
    except ValueError:
        placeholders = {template}
    known = placeholders <= {"recipe", "symbol"}
    if "symbol" in placeholders and known and len(symbols) != 1:
        raise ValueError(
            f"{field} uses {{symbol}}, which needs exactly one series, found {len(symbols)}; use {{recipe}} instead"
        )
    name = template.format(recipe=recipe, symbol="".join(symbols)) if known else template
    if not known or not _is_name(name):
        raise ValueError(
            f"{field} must make a repository name of letters, digits, '-', '_' and '.' and know no other "
            f"placeholders than {{recipe}} and {{symbol}}, found {template!r}; try '{{recipe}}-kronos-predictor'"
        )
    return name


def _is_name(name: str) -> bool:
    """The Hub's rule for one part of a repository's id."""
    return _NAME.fullmatch(name) is not None and "--" not in name and ".." not in name
