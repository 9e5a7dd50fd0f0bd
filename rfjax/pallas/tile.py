"""Loads of tiles whose sizes are powers of two from arrays whose sizes are not."""

import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from rfjax.typing import Array, Bool, Int


def inside(
    rows: Int[Array, " R"], n_rows: int | None, columns: Int[Array, " C"], n_columns: int | None
) -> Bool[Array, "R C"] | None:
    """Mask of a tile's elements that exist, or None if it is known that all do.

    Indices start at a multiple of the tile's size; a count of None promises that they exist.
    """
    masks = []
    if n_rows is not None and n_rows % rows.shape[0]:
        masks.append(rows[:, None] < n_rows)
    if n_columns is not None and n_columns % columns.shape[0]:
        masks.append(columns[None, :] < n_columns)
    if not masks:
        return None
    shape = (rows.shape[0], columns.shape[0])
    mask = jnp.broadcast_to(masks[0], shape)
    return mask if len(masks) == 1 else mask & jnp.broadcast_to(masks[1], shape)


def load_or_zero(ref, mask: Bool[Array, "*S"] | None) -> Array:
    """What `ref` (indexed by arrays, as `ref.at[...]`) points at, and 0 where `mask` is False."""
    return plt.load(ref) if mask is None else plt.load(ref, mask=mask, other=0)
