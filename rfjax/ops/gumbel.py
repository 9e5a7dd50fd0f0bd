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

    def uniform(seed, position):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        bits = jax.random.bits(key, (vocab,), jnp.uint32) >> 1
        return (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-31

    u = jnp.minimum(jax.vmap(uniform)(seeds, positions), 1.0 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-u))
