"""The table of single operations, and their other output formats. No JAX."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rfjax.bench.report import Format, percent, records_text, table_head, table_row

if TYPE_CHECKING:
    from rfjax.bench.op_linear import LinearResult

_COLUMNS = (
    ("shape", -12),
    ("n x k", -13),
    ("type", -8),
    ("rows", 5),
    ("us", 10),
    ("GB/s", 8),
    ("% of copy", 9),
    ("TFLOP/s", 8),
    ("% of matmul", 11),
    ("error", 8),
)


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
                "us": f"{result.seconds * 1e6:.2f}",
                "GB/s": f"{result.gb_per_s:.1f}",
                "% of copy": percent(result.copy_share),
                "TFLOP/s": f"{result.tflop_per_s:.4g}",
                "% of matmul": percent(result.matmul_share),
                "error": f"{result.error:.1e}",
            },
        )
