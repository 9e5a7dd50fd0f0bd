"""`rfjax inspect`: what a GGUF file holds and whether it can run."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfjax.cli import options
from rfjax.cli.output import columns, count, printable, show, size, write_json
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.inspection import Inspection, MetadataEntry
    from rfjax.placement import Placement


def inspect(
    model: options.Model,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show the table of tensors as well.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Show long metadata values whole.")
    ] = False,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a sequence to plan memory for; by default 4096, or the model's context "
            "where that is shorter.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a GGUF file holds, whether this version can run it, and how it would here."""
    from rfjax.inspection import inspect_file

    found = inspect_file(model, shorten=not metadata)
    placement, problem = None, None
    if found.supported:
        placement, problem = _place(model, dtype, weights, context)
    if json:
        write_json({"supported": found.supported, **vars(found), "placement": placement})
        return
    _show_summary(found)
    _show_metadata(found)
    _show_types(found)
    if tensors:
        _show_tensors(found, placement)
    if placement is not None:
        _show_placement(found, placement)
    if problem is not None:
        typer.echo(f"no plan: {problem}")


def _place(
    model: Path, dtype: str | None, weights: str | None, context: int | None
) -> "tuple[Placement | None, str | None]":
    """Where the tensors would go; or None, and why JAX has no device."""
    from rfjax.doctor import find_devices
    from rfjax.placement import place_file

    try:
        find_devices()
    except ConfigError as error:
        return None, str(error)
    return place_file(model, dtype=dtype, weights=weights, context=context), None


def _show_summary(found: "Inspection") -> None:
    table = columns("", "")
    bits = "" if found.bits_per_weight is None else f", {found.bits_per_weight:.2f} bits per weight"
    for part in found.parts:
        table.add_row("file", f"{printable(part.path)} ({size(part.nbytes)})")
    if len(found.parts) > 1:
        table.add_row("size", f"{size(found.file_bytes)} in {len(found.parts)} files")
    table.add_row("format", f"GGUF version {found.version}, alignment {found.alignment}")
    table.add_row("name", printable(found.name or "none"))
    table.add_row("architecture", printable(found.architecture or "none"))
    table.add_row("parameters", f"{count(found.n_parameters)} in {len(found.tensors)} tensors")
    table.add_row("tensor data", f"{size(found.tensor_bytes)}{bits}")
    table.add_row("supported", "yes" if found.supported else "no")
    for check in found.checks:
        mark = "ok: " if check.supported else "NO: "
        reason = "\n".join(printable(line) for line in check.reason.split("\n"))
        table.add_row(f"  {check.aspect}", mark + reason)
    show(table)


def _show_metadata(found: "Inspection") -> None:
    table = columns("metadata", "type", "value")
    for key, entry in found.metadata.items():
        table.add_row(printable(key), entry.type, _value(entry))
    show(table)


def _show_types(found: "Inspection") -> None:
    numbers = ("tensors", "elements", "size")
    table = columns("type", *numbers, right=numbers)
    for row in found.types:
        table.add_row(row.type, str(row.n_tensors), count(row.n_elements), size(row.nbytes))
    show(table)


def _show_tensors(found: "Inspection", placement: "Placement | None") -> None:
    numbers = ("bytes", "bits/weight")
    parts = ("part",) if len(found.parts) > 1 else ()
    paths = {} if placement is None else placement.paths
    runs = ("runs by",) if paths else ()
    headers = ("tensor", "shape", "type", *numbers, *parts, *runs)
    table = columns(*headers, right=(*numbers, "part"))
    for row in found.tensors:
        bits = "" if row.bits_per_weight is None else f"{row.bits_per_weight:.4g}"
        shape = " x ".join(map(str, row.shape)) or "scalar"
        cells = [printable(row.name), shape, row.type, str(row.nbytes), bits]
        part = [str(row.part + 1) for _ in parts]
        table.add_row(*cells, *part, *(paths.get(row.name, "unused") for _ in runs))
    show(table)


def _show_placement(found: "Inspection", placement: "Placement") -> None:
    """The memory plan, and how many tensors take which path."""
    if placement.plan is None:
        typer.echo(f"does not fit here: {placement.refusal}")
        return
    typer.echo(f"in {placement.dtype} it takes {placement.plan}")
    typer.echo()
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for row in found.tensors:
        path = placement.paths.get(row.name, "unused")
        sizes[path] += row.nbytes
        numbers[path] += 1
    right = ("tensors", "size")
    table = columns("runs by", *right, right=right)
    for path, nbytes in sizes.most_common():
        table.add_row(path, str(numbers[path]), size(nbytes))
    show(table)


def _value(entry: "MetadataEntry") -> str:
    """A metadata value on one line."""
    more = f" ... ({entry.length} in all)" if entry.shortened else ""
    if isinstance(entry.value, list):
        return f"[{', '.join(_scalar(item, entry.type) for item in entry.value)}{more}]"
    return _scalar(entry.value, entry.type) + more


def _scalar(value: Any, type_name: str) -> str:
    if isinstance(value, float) and "float32" in type_name:
        return f"{value:.7g}"  # the digits that single precision has
    return printable(value) if isinstance(value, str) else str(value)
