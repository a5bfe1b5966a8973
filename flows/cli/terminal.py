"""What every command needs first: the home, the environment, log lines on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.layout import Home

__all__ = ["names", "start"]


def start(obj: dict[str, Any], *, flow: bool = False, reads: bool = False) -> Home:
    """Open the home, perhaps one that it only `reads`, and prepare the environment, before anything imports Prefect.

    For a `flow`, obj["server"] is then the Prefect server that is being started for it, None where there is one.
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
