"""`rfjax archs`: which architectures run, with what, and how far they are from llama.cpp."""

from typing import TYPE_CHECKING, Annotated

import typer

from rfjax.cli import options
from rfjax.cli.output import columns, show, write_json

if TYPE_CHECKING:
    from rfjax.models.catalog import Entry


def archs(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One architecture, as a file's general.architecture says it; by default all.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the architectures: models, mechanisms, error against llama.cpp, formats, kernels."""
    from rfjax.models.catalog import catalog, find_entry

    if name is not None:
        entry = find_entry(name)
        if json:
            write_json(_as_json(entry))
        else:
            _show_one(entry)
        return
    entries = catalog()
    if json:
        write_json({"architectures": [_as_json(entry) for entry in entries]})
    else:
        _show_all(entries)


def _as_json(entry: "Entry") -> dict[str, object]:
    measured = entry.conformance
    return {
        "supported": entry.supported,
        **vars(entry),
        "nmse": None if measured is None else measured.nmse,
    }


def _verdict(entry: "Entry") -> str:
    """The measured error of what is supported."""
    if entry.conformance is None or not entry.supported:
        return "unverified"
    return f"{entry.conformance.nmse:.1e}"


def _show_all(entries: "tuple[Entry, ...]") -> None:
    table = columns("architecture", "models", "NMSE", "mechanisms")
    for entry in entries:
        table.add_row(entry.name, entry.models, _verdict(entry), ", ".join(entry.mechanisms))
    show(table)
    n_supported = sum(entry.supported for entry in entries)
    formats = ", ".join(entries[0].formats)
    typer.echo(f"{n_supported} of {len(entries)} supported: compared with llama.cpp's logits")
    typer.echo(f"weights of every one: {formats}")
    typer.echo("rfjax archs NAME shows the models compared, and the kernels")


def _show_one(entry: "Entry") -> None:
    table = columns("", "")
    table.add_row("architecture", entry.name)
    table.add_row("models", entry.models)
    table.add_row("supported", "yes" if entry.supported else "no: unverified")
    table.add_row("mechanisms", "\n".join(entry.mechanisms))
    if entry.conformance is not None:
        errors = entry.conformance.errors
        table.add_row("compared with", entry.conformance.reference)
        table.add_row("NMSE", "\n".join(f"{e:.1e}  {name}" for name, e in errors.items()))
    table.add_row("formats", ", ".join(entry.formats))
    table.add_row("kernels", "\n".join(entry.kernels))
    table.add_row("in one launch", "\n".join(entry.fused))
    if entry.without:
        declined = (f"{kernel}: {reason}" for kernel, reason in entry.without.items())
        table.add_row("without", "\n".join(declined))
    show(table)
