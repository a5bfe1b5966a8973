"""`kronos`: the whole program from a terminal.

Commands import what they need when they run, so that `kronos --help` answers at once and the environment is
prepared before Prefect and MLflow read it.
"""

from __future__ import annotations

import difflib
import re
import signal
import sys
from itertools import pairwise
from typing import Any, NoReturn

import click

from flows.cli.candle_commands import candles, export, import_, ingest, verify
from flows.cli.market_commands import monitor, replay
from flows.cli.night_commands import each, evaluate, finetune, forecast, run
from flows.cli.registry_commands import promote, recipes, rollback, scores
from flows.cli.serve_command import serve
from flows.cli.site_commands import deploy, doctor, gc, ui, up, worker
from flows.cli.terminal import until_unread

__all__ = ["main"]

_COMMANDS = (
    *(run, each, finetune, evaluate, forecast),
    *(ingest, import_, export, candles, verify, monitor, replay),
    *(recipes, promote, rollback, scores, serve),
    *(up, worker, deploy, ui, doctor, gc),
)


_ALSO = {"nightly": "run", "train": "finetune", "predict": "forecast", "download": "ingest"}
"""What people take a command to be called; the flow of `run` is called nightly."""


class _Program(click.Group):
    """All commands: one that is mistyped is answered with the nearest, and no option is given an empty text."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        for before, word in pairwise(["kronos", *arguments[1]]):
            if word == "" or re.fullmatch(r"--[a-z-]+=", word):
                where = word.rstrip("=") or before
                raise click.UsageError(f"Expected a value after {where}, found an empty text")
        return super().make_context(*arguments, **options)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], [*self.commands, *_ALSO], n=1)
        if near and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r} (did you mean {_ALSO.get(near[0], near[0])}?)")
        return super().resolve_command(ctx, args)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    metavar="PLACE",
    envvar="KRONOS_HOME",
    help="Where everything is kept: a folder, or s3://bucket/prefix [./.kronos].",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every step.")
@click.version_option(package_name="kronos-nightly")
@click.pass_context
def cli(context: click.Context, home: str | None, verbose: bool) -> None:
    """Fine-tune Kronos on Binance candles, every night: ingest, train, judge, publish, forecast."""
    context.obj = {"home": home, "verbose": verbose}


for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake, a full disk or a dead network is one sentence and exit code 1."""
    from flows.failures import explain

    signal.signal(signal.SIGTERM, _stopped)
    until_unread()
    try:
        cli.main(prog_name="kronos", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kronos"
        _complain(f"{error.format_message().rstrip('.')}; `{command} --help` says what is possible.")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _stopped(signal.SIGINT)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _complain(sentence)
        sys.exit(1)


def _stopped(number: int, frame: object = None) -> NoReturn:
    """Leave in order also on SIGTERM, whose default would leave the embedded Prefect server behind."""
    from rich.console import Console

    Console(stderr=True).print("Stopped; the same command resumes where it was.")
    sys.exit(128 + number)


def _complain(sentence: str) -> None:
    """One line on stderr, word for word."""
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("error:", "bold red"), " ", " ".join(sentence.split()))
    Console(stderr=True, soft_wrap=True).print(line)
