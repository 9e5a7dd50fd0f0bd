"""Products with weight matrices, and rows of an embedding table."""

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float, Int


def linear(
    x: Float[Array, "T K"],
    weight: Float[Array, "N K"],
    bias: Float[Array, " N"] | None = None,
) -> Float[Array, "T N"]:
    """`x @ weight.T + bias` in the dtype of `x`, accumulated in f32.

    The weight is stored `[out, in]`, as GGUF stores it. In f32 the product is computed at full
    precision on every backend (GPUs would otherwise round the operands), and a single row is
    computed as two: XLA's CPU backend sums a one-row product in another order, and a token's
    activations must not depend on how many tokens are computed beside it.
    """
    rows = x.shape[0]
    exact = x.dtype == jnp.float32
    if exact and rows == 1:
        x = jnp.concatenate([x, x])
    y = jax.lax.dot_general(
        x,
        weight.astype(x.dtype),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )[:rows]
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, :]
    return y.astype(x.dtype)


def embed(
    token_ids: Int[Array, " T"], weight: Float[Array, "V D"], dtype: jnp.dtype
) -> Float[Array, "T D"]:
    """Rows of the embedding table, cast to `dtype`. Ids outside `[0, V)` give rows of NaN."""
    return weight.at[token_ids].get(mode="fill", fill_value=jnp.nan).astype(dtype)
