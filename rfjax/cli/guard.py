"""What happens when a command fails: a message and an exit code instead of a traceback."""

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from rfjax.errors import RfjaxError

_GLOBAL_FLAGS = ("--debug", "--verbose", "-v")
_INTERRUPTED = 130  # as shells report SIGINT
_BROKEN_PIPE = 141  # as shells report SIGPIPE


class GuardedGroup(TyperGroup):
    """Commands whose errors end in exit code 2, with global flags before or after the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the global flags, up to a `--`, in front of the command."""
        end = args.index("--") if "--" in args else len(args)
        flags = [arg for arg in args[:end] if arg in _GLOBAL_FLAGS]
        rest = [arg for arg in args[:end] if arg not in _GLOBAL_FLAGS]
        return super().parse_args(ctx, flags + rest + args[end:])

    def invoke(self, ctx: Any) -> object:
        """Run the command; what rfjax raises on purpose becomes a message on stderr."""
        try:
            return super().invoke(ctx)
        except RfjaxError as error:
            if ctx.meta.get("rfjax.debug"):
                traceback.print_exc()
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader is gone. What is still buffered goes nowhere, or Python would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None
        except OSError as error:  # files are checked where they are read: this is the output
            if ctx.meta.get("rfjax.debug"):
                traceback.print_exc()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            raise typer.Exit(2) from error
