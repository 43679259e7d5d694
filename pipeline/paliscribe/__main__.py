"""`python -m paliscribe`."""

from paliscribe.cli.main import main

main()
