"""Which keys a block of queries sees, and which blocks of keys it needs masks for."""

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.ops.mask import Mask
from rfjax.typing import Array, Int

_NEVER = 2**31 - 1


@struct.dataclass
class KeySpan:
    """Keys by position that some queries see, and blocks of `block_k` keys.

    Blocks `first` to `whole` and `full` to `blocks` are seen in part, those from `whole` to `full`
    by every query in full. Queries that see nothing have no part in this.

    Attributes:
        lowest: of each query the first key it sees; None where that is key 0 for all.
        highest: of each query the last key; less than the first where it sees none.
        begin, end: all keys that any query sees lie in `[begin, end)`.
        first, whole, full, blocks: indices of blocks, in this order.
    """

    lowest: Int[Array, " Q"] | None
    highest: Int[Array, " Q"]
    begin: Int[Array, ""]
    end: Int[Array, ""]
    first: Int[Array, ""]
    whole: Int[Array, ""]
    full: Int[Array, ""]
    blocks: Int[Array, ""]

    def sees(self, keys: Int[Array, " S"]) -> Array:
        """Bool [Q, S]: which of the keys each query sees."""
        visible = keys[None, :] <= self.highest[:, None]
        if self.lowest is not None:
            visible &= keys[None, :] >= self.lowest[:, None]
        return visible

    def any_sees(self, positions: Int[Array, " Q"]) -> Array:
        """Bool [Q]: which queries, at these positions, see any key."""
        first_key = 0 if self.lowest is None else jnp.maximum(self.lowest, 0)
        return (positions >= 0) & (self.highest >= first_key)


def key_span(mask: Mask, positions: Int[Array, " Q"], n_keys, block_k: int) -> KeySpan:
    """Of queries at some positions, -1 at padding, and keys at `0 .. n_keys - 1`."""
    lowest, highest = _seen(mask, positions, n_keys)
    real = positions >= 0
    end = jnp.max(highest) + 1
    blocks = jax.lax.div(end + (block_k - 1), block_k)
    # Padding shall not count: it sees nothing whatever is computed for it.
    everywhere = jnp.min(jnp.where(real, highest, jnp.int32(_NEVER - 1))) + 1
    full = jnp.minimum(jax.lax.div(everywhere, block_k), jax.lax.div(end, block_k))
    if lowest is None:
        none = jnp.int32(0)
        return KeySpan(None, highest, none, end, none, none, full, blocks)
    begin = jnp.maximum(jnp.min(jnp.where(real, lowest, jnp.int32(_NEVER))), 0)
    first = jax.lax.div(begin, block_k)
    full = jnp.maximum(full, first)
    whole = jax.lax.div(jnp.max(jnp.where(real, lowest, 0)) + (block_k - 1), block_k)
    return KeySpan(lowest, highest, begin, end, first, jnp.clip(whole, first, full), full, blocks)


def _seen(mask: Mask, positions, n_keys):
    """First (None: 0) and last key that each query sees; last < first where it sees none."""
    if mask.kind == "bidirectional":
        return None, jnp.where(positions >= 0, n_keys - 1, -1)
    highest = jnp.minimum(positions, n_keys - 1)
    if mask.kind == "window":
        return positions - (mask.size - 1), highest
    if mask.kind == "chunked":
        return jax.lax.div(jnp.maximum(positions, 0), mask.size) * mask.size, highest
    return None, highest
