"""The application: its commands, and the flags they share."""

import io
import logging
import sys
from typing import Annotated

import typer

from rfjax.cli import (
    archs,
    bench,
    chat,
    compare,
    demo,
    doctor,
    eval,
    generate,
    inspect,
    kld,
    perplexity,
    selfcheck,
    tune,
)
from rfjax.cli.guard import GuardedGroup

app = typer.Typer(
    name="rfjax",
    cls=GuardedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(perplexity.perplexity)
app.command()(kld.kld)
app.command()(compare.compare)
app.command("eval", context_settings=eval.PASSED_ON)(eval.evaluate)
app.command()(bench.bench)
app.command()(inspect.inspect)
app.command()(archs.archs)
app.command()(doctor.doctor)
app.command()(selfcheck.selfcheck)
app.command()(tune.tune)
app.command()(demo.demo)


def _show_version(asked: bool) -> None:
    if asked:
        import rfjax

        typer.echo(f"rfjax {rfjax.__version__}")
        raise typer.Exit


@app.callback()
def configure(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """LLM inference for GGUF models in JAX.

    The flags below may stand anywhere on the command line.
    """
    ctx.meta["rfjax.debug"] = debug
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.getLogger("rfjax").addHandler(handler)
        logging.getLogger("rfjax").setLevel(logging.INFO)


def main() -> None:
    """The entry point `rfjax`. Exits with 0, 2 for errors, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # text must not fail for want of a character
    app()
