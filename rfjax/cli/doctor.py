"""`rfjax doctor`: what this installation runs on, and what stands in the way."""

from typing import TYPE_CHECKING

import typer

from rfjax.cli import options
from rfjax.cli.output import columns, show, size, write_json

if TYPE_CHECKING:
    from rfjax.doctor import Diagnosis


def doctor(json: options.Json = False) -> None:
    """Show versions, devices and which kernels would run; exits with 0 if models can run."""
    from rfjax.doctor import diagnose

    found = diagnose()
    if json:
        write_json({"usable": found.usable, **vars(found)})
    else:
        _show(found)
    if not found.usable:
        raise typer.Exit(1)


def _show_kernels(found: "Diagnosis") -> None:
    """What is remembered of self-checks, a line a kernel."""
    table = columns("kernel", "self-check")
    for kernel in dict.fromkeys(result.kernel for result in found.selfcheck):
        results = [result for result in found.selfcheck if result.kernel == kernel]
        good = sum(result.usable for result in results)
        state = "passes" if good == len(results) else "FAILS, not used"
        table.add_row(kernel, f"{state}: {good} of {len(results)} cases")
    if not found.selfcheck:
        table.add_row("all", "not done yet: a model does it when it is loaded, or rfjax selfcheck")
    shipped, own = found.n_tuned
    table.add_row("settings", f"{shipped} measured ones shipped for it, {own} by rfjax tune")
    show(table)


def _show(found: "Diagnosis") -> None:
    table = columns("", "")
    table.add_row("rfjax", found.rfjax)
    table.add_row("python", f"{found.python} on {found.system}")
    for name, version in {**found.packages, **found.plugins}.items():
        table.add_row(name, version or "not installed")
    if found.hardware.rocm:
        table.add_row("ROCm", found.hardware.rocm)
    show(table)

    table = columns("device", "kind", "free", "limit")
    for device in found.devices:
        limit = size(device.memory_limit)
        table.add_row(
            f"{device.platform}:{device.id}", device.kind, size(device.memory_free), limit
        )
    show(table)

    table = columns("", "")
    table.add_row("default dtype", found.dtype or "none")
    table.add_row("compilation cache", found.cache_folder or "off")
    show(table)

    table = columns("operation", "runs on", "because")
    for choice in found.ops:
        declined = "".join(f"; {name} declines: {why}" for name, why in choice.declined)
        table.add_row(choice.op, choice.implementation, choice.reason + declined)
    show(table)
    if found.kernels:
        _show_kernels(found)

    for kind, lines in (
        ("problem", found.problems),
        ("warning", found.warnings),
        ("hint", found.hints),
    ):
        for line in lines:
            typer.echo(f"{kind}: {line}")
    typer.echo("models can run here" if found.usable else "models cannot run here")
