"""The command line: each command parses, calls the Python function of its meaning, and prints."""

from rfjax.cli.app import main as main
