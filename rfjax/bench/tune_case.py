"""What to tune: launches of matrix-vector kernels as models have them."""

import dataclasses
from collections.abc import Iterable, Sequence

from rfjax.bench.op_case import linear_cases
from rfjax.errors import ConfigError
from rfjax.models.launches import Matrices, launches
from rfjax.pallas.plain_matvec import MAX_ROWS as MAX_PLAIN
from rfjax.pallas.quantized_matvec import ROWS_AT_ONCE
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.types import NATIVE_DTYPES, GGMLType


@dataclasses.dataclass(frozen=True)
class TuneCase:
    """One launch.

    Attributes:
        types: of the weights.
        sizes: their rows.
        k: their columns.
        m: rows of activations.
    """

    types: tuple[GGMLType, ...]
    sizes: tuple[int, ...]
    k: int
    m: int

    @property
    def kernel(self) -> str:
        """Name of the kernel that takes such weights."""
        return "plain_matvec" if self.types[0] in NATIVE_DTYPES else "quantized_matvec"

    def __str__(self) -> str:
        weights = " + ".join(f"{n} {t.name}" for n, t in zip(self.sizes, self.types, strict=True))
        return f"{weights} x {self.k}, rows {self.m}"


def given_cases(
    shapes: Sequence[str], types: Sequence[str], rows: Sequence[int]
) -> tuple[TuneCase, ...]:
    """Single matrices.

    Args:
        shapes, types, rows: as of `rfjax.bench.op_case.linear_cases`.

    Raises:
        ConfigError: as there, or no kernel takes a type.
    """
    return tuple(
        _checked(TuneCase((case.type,), (case.n,), case.k, case.m))
        for case in linear_cases(shapes, types, rows)
        if case.m <= _most(case.type)
    )


def model_cases(matrices: Matrices, rows: Iterable[int]) -> tuple[TuneCase, ...]:
    """The different launches of a model's layers and of its output.

    Args:
        matrices: type and shape of each by its GGUF name; what no kernel takes is left out.
        rows: rows of activations.
    """
    rows = tuple(rows)
    return tuple(
        dict.fromkeys(
            TuneCase(launch.types, launch.sizes, launch.k, m)
            for launch in launches(matrices)
            for m in rows
            if m <= _most(launch.types[0])
        )
    )


def _most(type: GGMLType) -> int:
    """Most rows of activations with settings of their own; more of them run with these."""
    return MAX_PLAIN if type in NATIVE_DTYPES else ROWS_AT_ONCE


def _checked(case: TuneCase) -> TuneCase:
    if case.types[0] not in (*LAYOUTS, *NATIVE_DTYPES):
        known = ", ".join(type.name.lower() for type in (*LAYOUTS, *NATIVE_DTYPES))
        raise ConfigError(f"type: no kernel takes {case.types[0].name}, expected one of {known}")
    return case
