"""`rfjax selfcheck`: every kernel on this device, against f64."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfjax.cli import options
from rfjax.cli.output import columns, show, spinner, write_json
from rfjax.errors import ConfigError

if TYPE_CHECKING:
    from rfjax.selfcheck.case import CheckCase
    from rfjax.selfcheck.checker import CheckResult


def selfcheck(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file, to check what it uses; by default everything.", show_default=False
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(metavar="TYPE,...", help="Types of weights; by default all with a kernel."),
    ] = None,
    dtype: options.Dtype = None,
    interpret: Annotated[
        bool,
        typer.Option("--interpret", help="On the CPU, interpret the kernels: slow."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Check every kernel on this device against f64; exits with 1 if any fails.

    Random numbers are new each time. Results are remembered: models use what passes.
    """
    from rfjax.doctor import find_devices
    from rfjax.ops.dispatch import KernelPolicy
    from rfjax.selfcheck.guard import checked, failing, kernels_run_here
    from rfjax.selfcheck.record import Record

    device = find_devices()[0]
    if not kernels_run_here(KernelPolicy(interpret=interpret)):
        if json:
            write_json({"device": device.device_kind, "ok": True, "results": []})
        else:
            typer.echo(
                "No kernels run on the CPU: plain JAX computes everything. --interpret checks "
                "them all the same, slowly"
            )
        return
    cases = _cases(model, types, dtype)
    start = time.perf_counter()
    with spinner(f"checking {len(cases)} cases on {device.device_kind}"):
        results = checked(cases, Record(), again=True)
    failed = [result for result in results if not result.usable]
    if json:
        write_json({"device": device.device_kind, "ok": not failed, "results": results})
    else:
        _show(results)
        typer.echo(
            f"{len(results) - len(failed)} of {len(results)} cases pass on {device.device_kind}, "
            f"in {time.perf_counter() - start:.1f} s"
        )
        if failed:
            typer.echo(f"models will not use: {', '.join(failing(results))}")
    if failed:
        raise typer.Exit(1)


def _cases(model: Path | None, types: str | None, dtype: str | None) -> "tuple[CheckCase, ...]":
    from rfjax.io.gguf import read_gguf
    from rfjax.io.load import plan_load, resolve_dtype
    from rfjax.io.storage import matrices_of
    from rfjax.models.configure import configure
    from rfjax.quant.layout import LAYOUTS
    from rfjax.quant.types import NATIVE_DTYPES
    from rfjax.selfcheck.choose import all_cases, model_cases

    if model is not None:
        if types is not None:
            raise typer.BadParameter("a model has its own types", param_hint="--types")
        gguf = read_gguf(model)
        config = configure(gguf, dtype=resolve_dtype(dtype))
        storages, _ = plan_load(gguf, config, weights="packed")
        return model_cases(matrices_of(storages), config)
    if types is None:
        return all_cases(resolve_dtype(dtype))
    known = {type.name: type for type in (*LAYOUTS, *NATIVE_DTYPES)}
    chosen = types.upper().split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ConfigError(
            f"types: got {', '.join(unknown)}, expected some of {', '.join(known).lower()}"
        )
    return all_cases(resolve_dtype(dtype), [known[name] for name in chosen])


def _show(results: "tuple[CheckResult, ...]") -> None:
    numbers = ("error", "limit")
    table = columns("kernel", "case", *numbers, "verdict", right=numbers)
    for result in results:
        verdict = result.verdict if result.usable else result.verdict.upper()
        reason = "" if result.reason is None else f": {result.reason}"
        error = "" if result.error is None else f"{result.error:.1e}"
        limit = f"{result.limit:.0e}"
        table.add_row(result.kernel, result.label, error, limit, verdict + reason)
    show(table)
