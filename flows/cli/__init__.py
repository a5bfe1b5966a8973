"""`kronos`: commands, options, screens. Nothing else prints."""

__all__ = ["main"]


def main() -> None:
    """Entry point of the command line."""
    from flows.cli.program import main as run

    run()
