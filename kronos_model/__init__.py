"""The Kronos model and everything numeric around it: arrays in, arrays out.

The public names load on first use, so that importing the package costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kronos_model.forecaster import Forecaster
    from kronos_model.predictor import Kronos
    from kronos_model.tokenizer import KronosTokenizer

__all__ = ["Forecaster", "Kronos", "KronosTokenizer"]

_HOMES = {
    "Forecaster": "kronos_model.forecaster",
    "Kronos": "kronos_model.predictor",
    "KronosTokenizer": "kronos_model.tokenizer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
