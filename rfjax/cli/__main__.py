"""`python -m rfjax.cli`, the same as `rfjax`."""

from rfjax.cli.app import main

main()
