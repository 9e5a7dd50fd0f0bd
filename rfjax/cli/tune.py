"""`rfjax tune`: the fastest settings of the kernels on this device."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfjax.cli import options
from rfjax.cli.output import columns, note, show, spinner
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.bench.tune import TuneResult
    from rfjax.bench.tune_case import TuneCase
    from rfjax.models.launches import Matrices


def tune(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file; or --synthetic, or --shapes and --types.", show_default=False
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            "--synthetic",
            "-s",
            metavar="SHAPE:MIX",
            help="A model's shapes and types without its file, such as llama-8b:q4_k_m.",
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(metavar="NxK,...", help="Matrices, by sizes or by names of rfjax bench."),
    ] = None,
    types: Annotated[
        str | None, typer.Option(metavar="TYPE,...", help="Types of these matrices.")
    ] = None,
    rows: Annotated[str, typer.Option(metavar="M,...", help="Rows of activations.")] = "1,2,4",
    output: Annotated[
        Path | None,
        typer.Option(help="File to add to; by default the user's, which models read."),
    ] = None,
    dtype: options.Dtype = None,
) -> None:
    """Time the settings of the kernels for few rows on this device, and keep the fastest.

    Models read what is kept when they are loaded next; nothing is timed while they run.
    """
    from rfjax.bench.case import numbers
    from rfjax.bench.tune import tune as measure
    from rfjax.doctor import find_devices
    from rfjax.pallas.tuned_config import user_file

    device = find_devices()[0].device_kind
    path = output or user_file(device)
    if path is None:
        raise ConfigError("tune: there is no home directory to write to; name a file by --output")
    cases = _cases(model, synthetic, shapes, types, numbers(rows), dtype)
    found = []
    results = measure(cases)
    for i in range(len(cases)):
        with spinner(f"{i + 1} of {len(cases)}: {cases[i]}"):
            found.append(next(results))
        _keep(path, device, found[-1])
    _show(found)
    note(f"{len(found)} settings are in {path}")


def _cases(
    model: Path | None,
    synthetic: str | None,
    shapes: str | None,
    types: str | None,
    rows: tuple[int, ...],
    dtype: str | None,
) -> "tuple[TuneCase, ...]":
    from rfjax.bench.tune_case import given_cases, model_cases

    given = [value is not None for value in (model, synthetic, shapes)]
    if sum(given) != 1 or (shapes is None) != (types is None):
        raise typer.BadParameter(
            "expected one of a GGUF file, --synthetic SHAPE:MIX, or --shapes with --types"
        )
    if shapes is not None and types is not None:
        return given_cases(shapes.split(","), types.split(","), rows)
    if synthetic is not None:
        return model_cases(_matrices_of_shape(synthetic, dtype), rows)
    assert model is not None
    return model_cases(_matrices_of_file(model, dtype), rows)


def _matrices_of_file(path: Path, dtype: str | None) -> "Matrices":
    from rfjax.io.gguf import read_gguf
    from rfjax.io.load import plan_load, resolve_dtype
    from rfjax.io.storage import matrices_of
    from rfjax.models.configure import configure

    gguf = read_gguf(path)
    config = configure(gguf, dtype=resolve_dtype(dtype))
    storages, _ = plan_load(gguf, config, weights="packed")
    return matrices_of(storages)


def _matrices_of_shape(name: str, dtype: str | None) -> "Matrices":
    from rfjax.io.load import resolve_dtype
    from rfjax.models.params import named_leaves, param_spec
    from rfjax.models.random_params import tensor_types
    from rfjax.models.shape import load_shape
    from rfjax.models.type_mix import check_mix

    shape_name, _, mix = name.partition(":")
    shape = load_shape(shape_name)
    config = shape.model_config(resolve_dtype(dtype))
    types = tensor_types(config, check_mix(mix or "q4_k_m"), shape.mix_model())
    leaves = named_leaves(param_spec(config))
    return {
        name: (types[name], leaf.shape) for name, leaf in leaves.items() if len(leaf.shape) == 2
    }


def _keep(path: Path, device: str, result: "TuneResult") -> None:
    """Add a result to a file; it replaces an earlier one of its shape."""
    import json

    from rfjax.pallas.tuned_config import TunedFile, as_text, parse
    from rfjax.user_files import write_atomically

    entry = result.entry()
    before = TunedFile(device, ())
    if path.exists():
        try:
            before = parse(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: is no file of tuned settings ({error}); remove it, or name another"
            ) from error
    key = lambda e: (e.kernel, e.type, e.n, e.k, e.m)  # noqa: E731
    others = [e for e in before.entries if key(e) != key(entry)]
    file = dataclasses.replace(before, device=device, entries=(*others, entry))
    write_atomically(path, as_text(file))


def _show(results: "list[TuneResult]") -> None:
    numbers = ("us", "GB/s", "faster by")
    table = columns("launch", "setting", *numbers, "tried", "clock", right=numbers)
    for result in results:
        faster = ""
        if result.heuristic_seconds is not None:
            faster = f"{100 * (result.heuristic_seconds / result.seconds - 1):.1f} %"
        setting = " x ".join(str(value) for value in dataclasses.astuple(result.config))
        tried = f"{result.tried}" + (f", {result.failed} fail" if result.failed else "")
        seconds, rate = f"{result.seconds * 1e6:.1f}", f"{result.gb_per_s:.0f}"
        table.add_row(str(result.case), setting, seconds, rate, faster, tried, result.clock)
    show(table)
