"""Where to cut a distribution: the sets that sorting would find, without sorting.

Numbers become integers in the same order, and weights are integers, so that a cutoff is found bit
by bit from sums that are exact in any order: the same set on every backend, whatever rows are
beside, and ties are whole. A sort of 64 x 128256 numbers takes ten times as long on a CPU.
"""

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Bool, Float, Int, UInt32

_BITS = 32
_SIGN = 1 << 31


def order_of(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """int32 that compare as these f32 do; -0 is 0. NaN has no place."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.zeros_like(x), x), jnp.int32)
    return bits ^ ((bits >> 31) & (_SIGN - 1))


def above_cutoff(
    order: Int[Array, "B V"], weight: Int[Array, "B V"], target: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """The smallest set of first elements, the greatest `order` first, that weighs `target`.

    Elements of equal order are in the set together. A row that weighs less than its target is
    kept whole.

    Args:
        order: int32.
        weight: int32, not negative; a row's sum must fit in int32.
        target: int32, at least 1.
    """

    def row_by_row(*rows):
        def one(row):
            return _greatest_cutoff(*(part[None] for part in row), bits_at_once=1)[0]

        return jax.lax.map(one, rows)

    def at_once(*rows):
        return _greatest_cutoff(*rows, bits_at_once=4)

    # The same integers by the fewest operations, on what a CPU's cache holds, or in the fewest
    # passes.
    cutoff = jax.lax.platform_dependent(order, weight, target, cpu=row_by_row, default=at_once)
    return order >= _signed(cutoff)[:, None]


def _greatest_cutoff(
    order: Int[Array, "B V"],
    weight: Int[Array, "B V"],
    target: Int[Array, " B"],
    bits_at_once: int,
) -> UInt32[Array, " B"]:
    """The greatest cutoff at and above which a row weighs its target, found from the top bit."""

    def weighs_target(cutoff):
        above = jnp.where(order >= _signed(cutoff)[:, None], weight, 0)
        return jnp.sum(above, axis=-1, dtype=jnp.int32) >= target

    def refine(step, cutoff):
        shift = jnp.uint32(_BITS - bits_at_once) - step.astype(jnp.uint32) * bits_at_once
        # The weight falls as the cutoff rises: the number of those that hold is the digit.
        digit = jnp.zeros_like(cutoff)
        for value in range(1, 1 << bits_at_once):
            holds = weighs_target(cutoff | (jnp.uint32(value) << shift))
            digit = digit + holds.astype(jnp.uint32)
        return cutoff | (digit << shift)

    start = jnp.zeros(order.shape[0], jnp.uint32)
    return jax.lax.fori_loop(0, _BITS // bits_at_once, refine, start)


def _signed(cutoff: UInt32[Array, " B"]) -> Int[Array, " B"]:
    """The int32 that stands where this uint32 does, counted from the smallest."""
    return jax.lax.bitcast_convert_type(cutoff ^ jnp.uint32(_SIGN), jnp.int32)
