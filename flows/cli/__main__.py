"""`python -m flows.cli` is `kronos`."""

from flows.cli.program import main

main()
