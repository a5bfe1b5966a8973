"""What every command needs first: the home, the environment, log lines on the terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from flows.environment import open_home, prepare_environment
from storage.layout import Home

__all__ = ["names", "start"]


def start(obj: dict[str, Any], *, flow: bool = False) -> Home:
    """Open the home and prepare the environment, before anything imports Prefect.

    For a `flow`, obj["server"] is then the Prefect server that is being started for it, None where there is one.
    """
    if not obj["verbose"]:
        _log_to_terminal()  # first: the first opening of a home on object storage may take a while
    home = open_home(obj["home"])
    prepare_environment(home, verbose=obj["verbose"])
    if flow:
        from flows.embedded import begin_embedded

        obj["server"] = begin_embedded(home)
    return home


def names(text: str) -> list[str]:
    """What stands between commas or spaces."""
    return [name for name in text.replace(",", " ").split() if name]


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what is stderr now: a progress view stands in for it while it is shown."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        """There is no other."""


def _log_to_terminal() -> None:
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    for name in ("flows", "tasks", "service", "exchange", "storage", "kronos_model"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
