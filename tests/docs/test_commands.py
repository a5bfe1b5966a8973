"""Every `kronos` command in a code block of the documentation is one that the program has, with options it knows."""

import re
import shlex
from pathlib import Path

import click
import pytest

from flows.cli.program import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]

_COMMAND = re.compile(r"(?:^\s*|\$\s+|&& |exec worker |KRONOS_HOME=\S+ )(?:\.venv/bin/)?kronos ([a-z-].*)")


def _commands(page: Path) -> list[str]:
    """What follows `kronos` in the fenced blocks, without comments; a line that goes on is joined."""
    blocks = page.read_text(encoding="utf-8").split("```")[1::2]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    bare = [re.split(r"\s#", line.removeprefix("$ "))[0] for line in lines if not line.startswith("#")]
    starts = map(_COMMAND.search, bare)
    return [start[1].rstrip(" &") for start in starts if start]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for text in _commands(page):
        words = shlex.split(text)
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None, f"no command: kronos {text}"
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert given <= known, f"no option {', '.join(given - known)}: kronos {text}"


def test_there_are_commands_to_compare() -> None:
    assert sum(len(_commands(page)) for page in PAGES) > 40
