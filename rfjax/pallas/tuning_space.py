"""Settings of the kernels for few rows that are worth timing."""

from collections.abc import Iterator

from rfjax.pallas import plain_matvec, quantized_matvec
from rfjax.pallas.target import Target, lanes_of
from rfjax.quant.layout import GROUP, groups_per_column

_LEAST_USE = 0.8
"""Share of the lanes that must have work."""

_MOST_RESULTS = 64
"""Sums that one lane may hold, a row of weights with a row of activations each."""

_LOADED = range(8, 65)
"""Plain weights that a lane loads at a time: enough to wait for memory, and within registers."""


def quantized_space(n: int, k: int, m: int, target: Target) -> tuple[quantized_matvec.Config, ...]:
    """For packed weights `[n, k]` and `m` rows of activations, the heuristic's first."""
    first = quantized_matvec.heuristic(n, k, m, target)
    others = _quantized(n, k, m, lanes_of(target))
    return (first, *(config for config in others if config != first))


def _quantized(n: int, k: int, m: int, lanes: int) -> Iterator[quantized_matvec.Config]:
    n_groups = groups_per_column(k)
    n_columns = k // (GROUP * n_groups)
    for warps in (1, 2, 4):
        for groups in (1, 2, 4, 8):
            columns = lanes * warps // groups
            chunks = -(-n_columns // columns)
            if groups > n_groups or n_columns < _LEAST_USE * chunks * columns:
                continue
            for rows in (1, 2, 4, 8):
                if rows <= n and rows * m <= max(_MOST_RESULTS, m):
                    yield quantized_matvec.Config(rows, groups, columns, warps)


def plain_space(n: int, k: int, m: int, target: Target) -> tuple[plain_matvec.Config, ...]:
    """For plain weights `[n, k]` and `m` rows of activations, the heuristic's first."""
    first = plain_matvec.heuristic(n, k, m, target)
    others = _plain(n, k, m, lanes_of(target))
    return (first, *(config for config in others if config != first))


def _plain(n: int, k: int, m: int, lanes: int) -> Iterator[plain_matvec.Config]:
    for warps in (1, 2, 4):
        for columns in (128, 256, 512, 1024):
            for unroll in (1, 2, 4, 8):
                if columns < 2 * lanes * warps or columns * unroll > k:
                    continue
                for rows in (1, 2, 4):
                    loaded = rows * unroll * columns // (lanes * warps)
                    held = rows * m * columns // (lanes * warps)
                    if rows <= n and loaded in _LOADED and held <= _MOST_RESULTS:
                        yield plain_matvec.Config(rows, columns, unroll, warps)
