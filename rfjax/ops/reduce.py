"""Products and sums of rows whose result does not depend on how many rows there are."""

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float

_SMALL = 4096
"""XLA's CPU backend computes exponentials of fewer elements in another way, which differs in the
last bit. Where that matters, rows are repeated up to this many elements."""


def copies_for(n_elements: int) -> int:
    """How often an array of that size must be repeated for its exponentials to be the usual."""
    return -(-_SMALL // n_elements)


def repeated(x: Array, copies: int, axis: int) -> Array:
    """`x` so many times, one behind the other along an axis.

    By broadcasting, not concatenated: XLA's CPU backend fuses what comes before with that, and it
    would then round otherwise.
    """
    shape = x.shape
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis), (*shape[:axis], copies, *shape[axis:]))
    return wide.reshape(*shape[:axis], copies * shape[axis], *shape[axis + 1 :])


def rows_product(
    x: Float[Array, "*B rows in"],
    w: Float[Array, "*B out in"],
    out_dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "*B rows out"]:
    """`x @ w.T` over the last two axes, accumulated in f32 and returned in `out_dtype`.

    Both operands contract their last axis: the one form that XLA's CPU backend computes row by
    row in an order of its own. A single row it computes in another way; in f32 it is therefore
    computed as two, behind barriers, without which XLA would simplify that away again. f32
    operands are multiplied at full precision on every backend (GPUs would otherwise round them).
    """
    n_batch = x.ndim - 2
    exact = x.dtype == jnp.float32
    single = exact and x.shape[-2] == 1
    if single:
        x = jax.lax.optimization_barrier(repeated(x, 2, n_batch))
    batch = tuple(range(n_batch))
    y = jax.lax.dot_general(
        x,
        w,
        (((n_batch + 1,), (n_batch + 1,)), (batch, batch)),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=out_dtype,
    )
    return jax.lax.optimization_barrier(y)[..., :1, :] if single else y


def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B 1"]:
    """Sum of each row in f32, keeping the axis: `jnp.sum(x, -1, keepdims=True)`.

    XLA's CPU backend picks the order of a reduction by the whole array's shape, so that a row's
    sum may change in the last bit with the number of rows beside it. There a product with ones
    takes its place, which keeps one order: that is what makes prefill equal decode bit for bit.
    """

    def by_product(x):
        ones = jnp.ones((8, x.shape[-1]), jnp.float32)
        sums = rows_product(x.reshape(1, -1, x.shape[-1]), ones[None])
        return sums[..., :1].reshape(*x.shape[:-1], 1)

    def by_reduction(x):
        return jnp.sum(x, axis=-1, keepdims=True)

    return jax.lax.platform_dependent(x, cpu=by_product, default=by_reduction)


def exp_below_best(x: Float[Array, "T E"], best: Float[Array, "T 1"]) -> Float[Array, "T E"]:
    """`exp(x - best)` of few f32 elements a row, the same whatever the number of rows."""
    rows, copies = x.shape[0], copies_for(x.size)
    if copies == 1:
        return jnp.exp(x - best)
    x, best = jax.lax.optimization_barrier((repeated(x, copies, 0), repeated(best, copies, 0)))
    return jax.lax.optimization_barrier(jnp.exp(x - best))[:rows]
