"""Tiles of one row's keys and values, loaded block by block through its page table."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from rfjax.pallas.tile import load_or_zero
from rfjax.typing import Array, Int

UNINDEXED = (2**31, 2**32)
"""Arrays of 8 bits of more numbers than the first, and no more than the second, are not taken: JAX
0.10 to 0.12 index them with 32 bits and take these as signed."""


def declines_size(pages: Array) -> str | None:
    """Why kernels do not take pages `[P, K, C, H]` of this many numbers, or None if they do."""
    most, end = UNINDEXED
    if pages.dtype == jnp.int8 and most < pages.size <= end:
        return f"pages of 8 bits must not have between 2 and 4 GiB, got {pages.shape[0]} pages"
    return None


class Tile(NamedTuple):
    """Keys and values `[*S, H]` of a block, as they lie in memory, H being padded with zeros.

    Attributes:
        keys: int32 [*S], their positions.
        k, v: in the dtype of the pages.
        k_scale, v_scale: f32 [*S] of an 8-bit cache, else None.
    """

    keys: Array
    k: Array
    v: Array
    k_scale: Array | None
    v_scale: Array | None

    def hiding(self, visible: Array) -> "Tile":
        """The tile with zeros for the values that are not visible, whatever they are."""
        if self.v_scale is not None:
            return self._replace(v_scale=jnp.where(visible, self.v_scale, 0.0))
        return self._replace(v=jnp.where(visible[..., None], self.v, jnp.zeros_like(self.v)))


@dataclasses.dataclass(frozen=True)
class PagedRow:
    """One row's keys and values of one kv head, cut into blocks.

    Attributes:
        refs: references by name: "k" and "v" of pages [P, K, C, H], "table" [B, M], and of an
            8-bit cache "k_scale" and "v_scale" [P, K, C].
        row, kv_head: which.
        dims: elements of the padded head.
        shape: of a block's keys, whose positions count up in row-major order; powers of two.
    """

    refs: Mapping[str, Any]
    row: Any
    kv_head: Any
    dims: Int[Array, " H"]
    shape: tuple[int, ...]

    def page_of(self, keys: Array) -> Array:
        """Pages of keys; for those beyond the table that of its last entry."""
        table, size = self.refs["table"], self.refs["k"].shape[2]
        entries = jax.lax.shift_right_logical(keys, jnp.full_like(keys, size.bit_length() - 1))
        return plt.load(table.at[self.row, jnp.minimum(entries, table.shape[1] - 1)])

    def find(self, block: Array) -> Array:
        """The page of a block that lies within one, else the pages of its keys.

        Asked for one block ahead, so that no load of keys waits for the table.
        """
        start = block * math.prod(self.shape)
        within = math.prod(self.shape) <= self.refs["k"].shape[2]
        return self.page_of(start if within else self._keys(start))

    def keys(self, block: Array) -> Array:
        """Positions of a block's keys."""
        return self._keys(block * math.prod(self.shape))

    def load(self, block: Array, pages: Array, seen: Array | None = None) -> Tile:
        """A block, in the pages that `find` gave for it.

        Args:
            seen: bool [*S]; where it is False nothing is read, and zeros stand. None reads all.
        """
        keys = self.keys(block)
        _, _, size, head_dim = self.refs["k"].shape
        places = keys & (size - 1)
        dims = self.dims.reshape((1,) * len(self.shape) + (-1,))
        tile = (*self.shape, self.dims.shape[0])
        mask = jnp.broadcast_to(dims < head_dim, tile) if head_dim < tile[-1] else None
        if seen is not None:
            wide = jnp.broadcast_to(seen[..., None], tile)
            mask = wide if mask is None else mask & wide
        page = pages[..., None] if pages.ndim else pages

        def numbers(name: str) -> Array:
            # Few are read again soon, unlike what else the step reads.
            load = functools.partial(plt.load, eviction_policy="evict_first")
            ref = self.refs[name].at[page, self.kv_head, places[..., None], dims]
            return load(ref) if mask is None else load(ref, mask=mask, other=0)

        def scales(name: str) -> Array | None:
            ref = self.refs.get(name)
            if ref is None:
                return None
            return load_or_zero(ref.at[pages, self.kv_head, places], seen)

        return Tile(keys, numbers("k"), numbers("v"), scales("k_scale"), scales("v_scale"))

    def _keys(self, start: Array) -> Array:
        stride, keys = math.prod(self.shape), start
        for axis, size in enumerate(self.shape):
            stride //= size
            along = [1] * len(self.shape)
            along[axis] = size
            keys = keys + (jnp.arange(size, dtype=jnp.int32) * stride).reshape(along)
        return keys
