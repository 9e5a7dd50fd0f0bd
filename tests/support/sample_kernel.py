"""A tiled matrix product as a Pallas-Triton kernel, to test the compile check itself with."""

import functools

import jax
import jax.numpy as jnp


def _product(x_ref, w_ref, o_ref, *, depth: int, step: int):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

    def body(i, total):
        k = pl.ds(i * step, step)
        return total + plt.dot(x_ref[:, k], w_ref[k, :])

    total = jnp.zeros(o_ref.shape, jnp.float32)
    o_ref[...] = jax.lax.fori_loop(0, depth // step, body, total)


def product(x: jax.Array, w: jax.Array, *, tile: int, step: int = 32, warps: int = 4) -> jax.Array:
    """`x @ w` in f32 for x [M, K] and w [K, N], by tiles of [tile, tile] and `step` of K."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

    (rows, depth), columns = x.shape, w.shape[1]
    return pl.pallas_call(
        functools.partial(_product, depth=depth, step=step),
        out_shape=jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(rows // tile, columns // tile),
        in_specs=[
            pl.BlockSpec((tile, depth), lambda i, j: (i, 0)),
            pl.BlockSpec((depth, tile), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, tile), lambda i, j: (i, j)),
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=2),
        name="sample_product",
    )(x, w)
