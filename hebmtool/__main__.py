"""`python -m hebmtool`: the `hebm` command."""

from hebmtool.cli.main import main

main()
