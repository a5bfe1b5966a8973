"""`python -m flows.cli` is `kronos`."""

from flows.cli import main

main()
