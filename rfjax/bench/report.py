"""The table of llama-bench and its other output formats, row by row. No JAX."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from rfjax.bench.result import Result

Format = Literal["md", "json", "jsonl", "csv"]

# Header, width as llama-bench has it; a negative width aligns to the left.
_COLUMNS = (("model", -30), ("size", 10), ("params", 10), ("backend", -10))
_OPTIONAL = {"dtype": -10, "weights": -11, "implementation": -14, "n_ubatch": 8}
_MEASURED = (("test", 15), ("t/s", 20))
_OURS = (("GB/s", 8), ("% of copy", 9), ("TFLOP/s", 8), ("% of matmul", 11))

_NOT_IN_CSV = ("samples_ns", "samples_ts")


def report(
    results: Iterable[Result], format: Format, *, extra: tuple[str, ...] = ()
) -> Iterator[str]:
    """Text of all rows, piece by piece as the rows come.

    Args:
        format: `md` for the table, `json` for a list of objects, `jsonl` for an object a line,
            `csv` for a line of names and a line a row, without the single samples.
        extra: columns of the table for settings that are not the defaults: `dtype`, `weights`,
            `implementation`, `n_ubatch`.
    """
    if format == "md":
        yield from _markdown(results, extra)
    else:
        yield from records_text((result.record() for result in results), format)


def records_text(records: Iterable[dict[str, Any]], format: Format) -> Iterator[str]:
    """Plain values of rows in any format but the table."""
    if format == "csv":
        yield from _csv(records)
    else:
        yield from _json(records, lines=format == "jsonl")


def _markdown(results: Iterable[Result], extra: tuple[str, ...]) -> Iterator[str]:
    columns = (*_COLUMNS, *((name, _OPTIONAL[name]) for name in extra), *_MEASURED, *_OURS)
    yield table_head(columns)
    last = None
    for last in results:
        yield table_row(columns, cells(last))
    if last is not None:
        yield f"\n{footer(last)}\n"


def table_head(columns: Iterable[tuple[str, int]]) -> str:
    """The two lines above a table's rows."""
    columns = tuple(columns)
    rule = " | ".join("-" * (abs(width) - 1) + (":" if width > 0 else "-") for _, width in columns)
    return table_row(columns, {name: name for name, _ in columns}) + f"| {rule} |\n"


def table_row(columns: Iterable[tuple[str, int]], values: Mapping[str, str]) -> str:
    """A line of a table; what is missing stays empty."""
    padded = (
        values.get(name, "").rjust(width) if width > 0 else values.get(name, "").ljust(-width)
        for name, width in columns
    )
    return f"| {' | '.join(padded)} |\n"


def cells(result: Result) -> dict[str, str]:
    """A row's values as the table shows them."""
    record = result.record()
    shown = {
        "model": result.model_type,
        "size": _size(result.model_size),
        "params": _count(result.model_n_params),
        "backend": result.environment.backends,
        "dtype": result.dtype,
        "weights": result.weights,
        "implementation": result.implementation,
        "n_ubatch": str(result.n_ubatch),
        "test": result.test,
        "t/s": f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
    }
    if result.gb_per_s is not None:
        shown["GB/s"] = f"{result.gb_per_s:.1f}"
        shown["% of copy"] = percent(result.copy_share)
    if not result.n_gen:
        shown["TFLOP/s"] = f"{result.tflop_per_s:.4g}"
        shown["% of matmul"] = percent(result.matmul_share)
    return shown


def footer(result: Result) -> str:
    """What a table was made with, and the ceilings that its shares are of."""
    environment = result.environment
    device = environment.gpu_info or environment.cpu_info
    text = f"build: rfjax {environment.build_commit}, JAX {environment.jax_version}, on {device}"
    if result.copy_bytes_per_s is not None and result.matmul_flop_per_s is not None:
        text += (
            f"\nmeasured: copy {result.copy_bytes_per_s / 1e9:.1f} GB/s (read and written), "
            f"matrix product {result.matmul_flop_per_s / 1e12:.4g} TFLOP/s in {result.dtype}"
        )
    return text


def percent(share: float | None) -> str:
    """A share for a table; empty where there is none."""
    return "" if share is None else f"{100 * share:.1f}"


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.2f} MiB"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.2f} M"


def _csv(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    names = None
    for record in records:
        kept = {name: value for name, value in record.items() if name not in _NOT_IN_CSV}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if names is None:
            names = list(kept)
            out.write(",".join(names) + "\n")
        writer.writerow(["" if value is None else value for value in kept.values()])
        yield out.getvalue()


def _json(records: Iterable[dict[str, Any]], *, lines: bool) -> Iterator[str]:
    if lines:
        for record in records:
            yield json.dumps(record, allow_nan=False) + "\n"
        return
    before = "[\n"
    for record in records:
        yield before + "  " + json.dumps(record, indent=2, allow_nan=False).replace("\n", "\n  ")
        before = ",\n"
    yield "\n]\n" if before != "[\n" else "[]\n"
