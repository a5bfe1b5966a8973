"""`kronos`: the whole program from a terminal.

Commands import what they need when they run, so that `kronos --help` answers at once and the environment is
prepared before Prefect and MLflow read it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from flows.cli.candle_commands import candles, export, import_, ingest, verify
from flows.cli.market_commands import monitor, replay
from flows.cli.night_commands import each, evaluate, finetune, forecast, run
from flows.cli.registry_commands import promote, recipes, rollback, scores
from flows.cli.serve_command import serve
from flows.cli.site_commands import deploy, doctor, gc, ui, up, worker

__all__ = ["main"]

_COMMANDS = (
    *(run, each, finetune, evaluate, forecast),
    *(ingest, import_, export, candles, verify, monitor, replay),
    *(recipes, promote, rollback, scores, serve),
    *(up, worker, deploy, ui, doctor, gc),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="KRONOS_HOME",
    help="Where everything is kept [./.kronos].",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every step.")
@click.version_option(package_name="kronos-nightly")
@click.pass_context
def cli(context: click.Context, home: Path | None, verbose: bool) -> None:
    """Fine-tune Kronos on Binance candles, every night: ingest, train, judge, publish, forecast."""
    context.obj = {"home": home, "verbose": verbose}


for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake, a full disk or a dead network is one sentence and exit code 1."""
    from flows.failures import explain

    signal.signal(signal.SIGTERM, _stopped)
    try:
        cli.main(prog_name="kronos", standalone_mode=False)
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
