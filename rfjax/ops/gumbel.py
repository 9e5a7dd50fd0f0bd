"""Random numbers of a draw."""

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float, Int, UInt32


def gumbel(
    seeds: UInt32[Array, " B"], positions: Int[Array, " B"], vocab: int
) -> Float[Array, "B V"]:
    """Standard Gumbel noise, f32: the largest of `log p + noise` is a draw from p.

    One key for each seed and position, `fold_in(key(seed), position)`: a row's noise depends on
    nothing else. `-log(-log(1 - u))` for u in steps of 2^-31, the finest near 0, so that the
    greatest value is 22 and tokens of a probability of 1e-9 are drawn as often as they should;
    with u near 1, as in `jax.random.gumbel`, f32 would end at 16. Finite always.
    """

    def bits(row):
        key = jax.random.fold_in(jax.random.key(row[0], impl="threefry2x32"), row[1])
        return jax.random.bits(key, (vocab,), jnp.uint32)

    def row_by_row(*rows):
        return jax.lax.map(bits, rows)

    def at_once(*rows):
        return jax.vmap(lambda *row: bits(row))(*rows)

    # The same integers: a CPU makes many passes over them, and its cache holds a row.
    drawn = jax.lax.platform_dependent(seeds, positions, cpu=row_by_row, default=at_once)
    u = ((drawn >> 1).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-31
    u = jnp.minimum(u, 1.0 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-u))
