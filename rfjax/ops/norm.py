"""Normalisation layers."""

from typing import Literal

import jax
import jax.numpy as jnp

from rfjax.ops.reduce import row_sum
from rfjax.typing import Array, Float

NormKind = Literal["rms", "layer"]
"""Root mean square, or mean and variance."""


def normalize(
    x: Float[Array, "*B D"],
    weight: Float[Array, "*W D"] | None,
    bias: Float[Array, "*W D"] | None,
    eps: float,
    kind: NormKind,
) -> Float[Array, "*B D"]:
    """The norm of a kind: `rms_norm` or `layer_norm`."""
    if kind == "rms":
        return rms_norm(x, weight, eps, bias)
    return layer_norm(x, weight, bias, eps)


def rms_norm(
    x: Float[Array, "*B D"],
    weight: Float[Array, "*W D"] | None,
    eps: float,
    bias: Float[Array, "*W D"] | None = None,
) -> Float[Array, "*B D"]:
    """`x / sqrt(mean(x^2) + eps) * weight + bias`, computed in f32, in the dtype of `x`.

    A row's result does not depend on the rows beside it, bit for bit in f32 on the CPU.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    Args:
        weight: of the last axis, or of the last axes, as `[N, D]` of `[T, N, D]`, where every head
            has its own; None multiplies by nothing.
        bias: likewise.
    """
    wide = x.astype(jnp.float32)
    return _scaled(wide, weight, bias, eps).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"],
    weight: Float[Array, "*W D"] | None,
    bias: Float[Array, "*W D"] | None,
    eps: float,
) -> Float[Array, "*B D"]:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, computed in f32, in the dtype of `x`.

    The variance is the mean square of the centred values. A row's result does not depend on the
    rows beside it, bit for bit in f32 on the CPU.

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).

    Args:
        weight: of the last axis, or of the last axes, as `[N, D]` of `[T, N, D]`, where every head
            has its own; None multiplies by nothing.
        bias: likewise.
    """
    wide = x.astype(jnp.float32)
    centred = wide - row_sum(wide) / x.shape[-1]
    return _scaled(centred, weight, bias, eps).astype(x.dtype)


def _scaled(x, weight, bias, eps):
    """f32 rows divided by their root mean square, and what is learned."""
    mean_square = row_sum(x * x) / x.shape[-1]
    x = x * jax.lax.rsqrt(mean_square + eps)
    if weight is not None:
        x = x * _beside(weight, x.ndim)
    return x if bias is None else x + _beside(bias, x.ndim)


def _beside(parameter, ndim: int):
    """A parameter in f32 with as many axes as what it meets."""
    missing = (1,) * (ndim - parameter.ndim)
    return parameter.astype(jnp.float32).reshape(missing + parameter.shape)
