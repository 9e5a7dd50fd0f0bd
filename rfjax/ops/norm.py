"""Normalisation layers."""

import jax
import jax.numpy as jnp

from rfjax.ops.reduce import row_sum
from rfjax.typing import Array, Float


def rms_norm(
    x: Float[Array, "*B D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in f32, returned in the dtype of `x`.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    wide = x.astype(jnp.float32)
    mean_square = row_sum(wide * wide) / x.shape[-1]
    scaled = wide * jax.lax.rsqrt(mean_square + eps)
    scale = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (scaled * scale).astype(x.dtype)
