"""A chat template and its arguments, as the command line gives them."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rfjax.cli.files import read_text

if TYPE_CHECKING:
    from rfjax.tokenizer import Tokenizer


def find_template(given: str | None, tokenizer: "Tokenizer | None") -> str | None:
    """A template's name or Jinja source, from a name, a file or source; None stays None.

    Names come before files, and what is nothing of all is returned for the tokenizer to refuse.

    Raises:
        RequestError: the file cannot be read, or is not UTF-8.
    """
    from rfjax.tokenizer.families import FAMILIES

    named = () if tokenizer is None else tokenizer.chat_templates
    if given is None or given in named or given in FAMILIES or not os.path.isfile(given):
        return given
    return read_text(Path(given)) + "\n"  # of which Jinja drops one, as everywhere


def template_arguments(given: Iterable[str]) -> dict[str, Any]:
    """Variables from `key=value`; values that are no JSON are texts.

    Raises:
        typer.BadParameter: there is no `=`, or nothing before it.
    """
    arguments = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(
                f"got {item!r}, expected a name and a value, such as enable_thinking=false",
                param_hint="--template-arg",
            )
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments
