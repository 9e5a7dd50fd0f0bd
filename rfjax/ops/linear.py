"""Products with weight matrices, and rows of an embedding table."""

import jax.numpy as jnp

from rfjax.ops.reduce import rows_product
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed, take_rows
from rfjax.typing import Array, Float, Int


def linear(
    x: Float[Array, "T in"],
    weight: Weight,
    bias: Float[Array, " out"] | None = None,
    *,
    out_dtype: jnp.dtype | None = None,
) -> Float[Array, "T out"]:
    """`x @ weight.T + bias`, accumulated in f32, in `out_dtype` (None takes that of `x`).

    The weight is stored `[out, in]`, as GGUF stores it, packed or as plain numbers. A token's
    result does not depend on how many tokens are computed beside it (see `rows_product`).
    """
    plain = (
        dequantize_packed(weight, x.dtype)
        if isinstance(weight, QTensor)
        else weight.astype(x.dtype)
    )
    y = rows_product(x, plain)
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, :]
    return y.astype(x.dtype if out_dtype is None else out_dtype)


def embed(token_ids: Int[Array, " T"], weight: Weight, dtype: jnp.dtype) -> Float[Array, "T D"]:
    """Rows of the embedding table, in `dtype`. Ids outside `[0, V)` give rows of NaN."""
    return take_rows(weight, token_ids, dtype)
