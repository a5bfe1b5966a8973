"""What every command needs first: the home, the environment, log lines on the terminal."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.layout import Home

__all__ = ["names", "start", "until_unread"]


def start(obj: dict[str, Any], *, flow: bool = False, reads: bool = False) -> Home:
    """Open the home, perhaps one that it only `reads`, and prepare the environment, before anything imports Prefect.

    For a `flow` obj["server"] is then the Prefect server that is being started for it, None where there is one: first
    make sure that the flow can be called.
    """
    from flows.environment import log_to_stderr, open_home, prepare_environment

    if not obj["verbose"]:
        log_to_stderr()  # first: the first opening of a home on object storage may take a while
    home = open_home(obj["home"], reads=reads)
    prepare_environment(home, verbose=obj["verbose"])
    if flow:
        from flows.site.embedded import begin_embedded

        obj["server"] = begin_embedded(home)
    return home


def names(text: str) -> list[str]:
    """What stands between commas or spaces."""
    return [name for name in text.replace(",", " ").split() if name]


def until_unread() -> None:
    """From here on the program ends quietly once nobody reads on what it says: `kronos recipes demo | head -2`."""
    out = sys.__stdout__
    if out is None or sys.stdout is not out or out.isatty():
        return
    raw = io.BufferedWriter(_UntilUnread(out.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(raw, encoding=out.encoding, errors=out.errors, line_buffering=True)


class _UntilUnread(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what is still in a buffer
            sys.exit(0)
