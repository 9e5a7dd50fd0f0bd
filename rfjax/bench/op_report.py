"""The tables of operations, and their other output formats. No JAX."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rfjax.bench.report import Format, percent, records_text, table_head, table_row

if TYPE_CHECKING:
    from rfjax.bench.op_attention import AttentionResult
    from rfjax.bench.op_chain import ChainResult
    from rfjax.bench.op_linear import LinearResult
    from rfjax.bench.op_schedule import ScheduleResult

_CHAIN_COLUMNS = (
    ("model", -24),
    ("layers", 6),
    ("rows", 5),
    ("us", 10),
    ("us a layer", 10),
    ("GB/s", 8),
    ("% of copy", 9),
)
_RATES = (
    ("us", 10),
    ("GB/s", 8),
    ("% of copy", 9),
    ("TFLOP/s", 8),
    ("% of matmul", 11),
    ("error", 8),
)
_COLUMNS = (("shape", -12), ("n x k", -13), ("type", -8), ("rows", 5), *_RATES)
_SCHEDULE_TIMES = (
    *("submit", "tick", "received", "metrics", "mean", "median", "worst", "collecting"),
)
_SCHEDULE_COLUMNS = (
    ("shape", -23),
    ("tokens", 6),
    *((f"{name} ms", len(name) + 3) for name in _SCHEDULE_TIMES),
)
_ATTENTION_COLUMNS = (("shape", -16), ("heads", 6), ("kv heads", 8), ("head size", 9), *_RATES)


def op_report(results: Iterable["LinearResult"], format: Format) -> Iterator[str]:
    """Text of all rows, piece by piece as the rows come; the formats are those of `report`."""
    if format != "md":
        yield from records_text((result.record() for result in results), format)
        return
    yield table_head(_COLUMNS)
    for result in results:
        case = result.case
        yield table_row(
            _COLUMNS,
            {
                "shape": case.shape,
                "n x k": f"{case.n}x{case.k}",
                "type": case.type.name,
                "rows": str(case.m),
                **_rates(result),
            },
        )


def attention_report(results: Iterable["AttentionResult"], format: Format) -> Iterator[str]:
    """The same for attention."""
    if format != "md":
        yield from records_text((result.record() for result in results), format)
        return
    yield table_head(_ATTENTION_COLUMNS)
    for result in results:
        case = result.case
        yield table_row(
            _ATTENTION_COLUMNS,
            {
                "shape": case.name,
                "heads": str(case.n_heads),
                "kv heads": str(case.n_kv_heads),
                "head size": str(case.head_dim),
                **_rates(result),
            },
        )


def _rates(result: "LinearResult | AttentionResult") -> dict[str, str]:
    return {
        "us": f"{result.seconds * 1e6:.2f}",
        "GB/s": f"{result.gb_per_s:.1f}",
        "% of copy": percent(result.copy_share),
        "TFLOP/s": f"{result.tflop_per_s:.4g}",
        "% of matmul": percent(result.matmul_share),
        "error": f"{result.error:.1e}",
    }


def chain_report(results: Iterable["ChainResult"], format: Format) -> Iterator[str]:
    """The same for passes through all layers."""
    if format != "md":
        yield from records_text((result.record() for result in results), format)
        return
    yield table_head(_CHAIN_COLUMNS)
    for result in results:
        yield table_row(
            _CHAIN_COLUMNS,
            {
                "model": result.model,
                "layers": str(result.n_layers),
                "rows": str(result.m),
                "us": f"{result.seconds * 1e6:.2f}",
                "us a layer": f"{result.seconds * 1e6 / result.n_layers:.2f}",
                "GB/s": f"{result.gb_per_s:.1f}",
                "% of copy": percent(result.copy_share),
            },
        )


def schedule_report(results: Iterable["ScheduleResult"], format: Format) -> Iterator[str]:
    """The same for scheduling; the table has milliseconds of a burst."""
    if format != "md":
        yield from records_text((result.record() for result in results), format)
        return
    yield table_head(_SCHEDULE_COLUMNS)
    for result in results:
        yield table_row(
            _SCHEDULE_COLUMNS,
            {
                "shape": result.case.name,
                "tokens": f"{result.tokens:.0f}",
                **{
                    f"{name} ms": f"{seconds * 1e3:.2f}"
                    for name, seconds in (*result.parts.items(), *vars(result).items())
                    if name in _SCHEDULE_TIMES
                },
            },
        )
