"""Which blocks of keys hold some that one new token sees."""

import jax
import jax.numpy as jnp

from rfjax.ops.mask import Mask
from rfjax.typing import Array, Int

Count = Int[Array, ""]


def decode_span(
    mask: Mask, position: Count, capacity: int, block_k: int
) -> tuple[Count, Count, Count, Count]:
    """First visible key, number of keys in the cache, first block, and number of blocks.

    The new token's own key, at `position`, is not in the cache yet. A row at position -1 has no
    blocks.

    Args:
        capacity: most keys of a row.
        block_k: keys of a block.
    """
    cached = jnp.clip(position, 0, capacity)
    first = jnp.int32(0)
    if mask.kind == "window":
        first = jnp.maximum(position - (mask.size - 1), 0)
    elif mask.kind == "chunked":
        first = jax.lax.div(jnp.maximum(position, 0), mask.size) * mask.size
    first_block = jax.lax.div(first, block_k)
    blocks = jnp.maximum(jax.lax.div(cached + (block_k - 1), block_k) - first_block, 0)
    return first, cached, first_block, blocks
