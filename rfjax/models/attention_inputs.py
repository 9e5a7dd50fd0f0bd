"""The one value through which attention knows about sequences; all else sees flat tokens."""

import jax.numpy as jnp
from flax import struct

from rfjax.cache.dense import LayerCache
from rfjax.cache.paged import LayerPages
from rfjax.typing import Array, Int

LayerView = LayerCache | tuple[LayerPages, Int[Array, "B M"]] | None
"""A layer's part of the cache; of a paged one, with the rows' tables."""


@struct.dataclass
class AttentionInputs:
    """T = B * L flat tokens as B rows of L, each row at its own positions.

    Attributes:
        positions: absolute position of each token, int32 [B, L]; -1 marks padding.
        key_lengths: keys of each row that are real once this step is written, int32 [B].
        tables: of a paged cache, the rows' page tables in every group, int32 [B, M] each.
    """

    positions: Array
    key_lengths: Array
    tables: tuple[Array, ...] = ()

    @property
    def flat_positions(self) -> Array:
        """Positions of the flat tokens, int32 [T], padding at 0."""
        return jnp.maximum(self.positions.reshape(-1), 0)


def whole_rows(lengths: Int[Array, " B"], length: int) -> AttentionInputs:
    """Rows that start at position 0 and hold `lengths` tokens, padded at the end to `length`."""
    positions = jnp.arange(length, dtype=jnp.int32)[None, :]
    positions = jnp.where(positions < lengths[:, None], positions, -1)
    return AttentionInputs(positions=positions, key_lengths=lengths.astype(jnp.int32))
