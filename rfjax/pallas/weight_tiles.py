"""One launch over the tiles of several weight matrices that share their input."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rfjax.quant.bits import Array


def tile_counts(sizes: Sequence[int], rows: int) -> tuple[int, ...]:
    """Tiles of `rows` rows of each matrix, whose sum is the number of programs."""
    return tuple(pl.cdiv(size, rows) for size in sizes)


def over_tiles(
    outputs: Sequence[Any], rows: int, compute: Callable[[int, Array], None], *, axis: int = 0
) -> None:
    """Inside a kernel: compute this program's tile, `compute(index of the output, first row)`.

    The last tile of a matrix is moved up to end at the last row: some rows are computed twice,
    alike. It takes as many rows as a tile has, so `rows` must not exceed the smallest matrix's.

    Args:
        outputs: refs `[M, N_i]`.
        rows: rows of a tile.
        axis: of the grid, along which the tiles are.
    """
    program, start = pl.program_id(axis), 0
    counts = tile_counts([output.shape[1] for output in outputs], rows)
    for index, (output, count) in enumerate(zip(outputs, counts, strict=True)):

        def run(index=index, output=output, start=start):
            last = output.shape[1] - rows
            compute(index, jnp.minimum((program - start) * rows, last))

        if len(outputs) == 1:
            run()
        else:
            pl.when((program >= start) & (program < start + count))(run)
        start += count
