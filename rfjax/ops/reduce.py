"""Sums along the last axis whose result does not depend on how many rows there are."""

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float


def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B 1"]:
    """Sum of each row in f32, keeping the axis: `jnp.sum(x, -1, keepdims=True)`.

    XLA's CPU backend picks the order of a reduction by the whole array's shape, so that a row's
    sum may change in the last bit with the number of rows beside it. A matrix product with ones
    keeps one order (two rows or more), and that is what makes prefill equal decode bit for bit.
    On other backends this is the plain sum.
    """

    def by_product(x):
        ones = jnp.ones((8, x.shape[-1]), jnp.float32)
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] == 1:
            rows = jnp.concatenate([rows, rows])
        sums = jax.lax.dot_general(
            rows, ones, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
        )
        return sums[: max(1, x.size // x.shape[-1]), :1].reshape(*x.shape[:-1], 1)

    def by_reduction(x):
        return jnp.sum(x, axis=-1, keepdims=True)

    return jax.lax.platform_dependent(x, cpu=by_product, default=by_reduction)
