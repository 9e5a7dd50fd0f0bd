"""The new token's key and value inside the decode kernel: as pages hold them, and into a page."""

from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from rfjax.pallas.target import Target
from rfjax.typing import Array, Bool, Float

_LARGEST_INT8 = 127

_ROUNDING = 1.5 * 2**23
"""Added to a number of less than 2^22, it leaves no bits for a fraction."""


def quantize_head(x: Float[Array, " H"], target: Target) -> tuple[Array, Array]:
    """int8 values and the f32 scale of a head, as `rfjax.cache.paged.quantize_heads` gives them.

    The largest becomes 127 or -127, the rest is rounded, halves to even. NaN makes the scale NaN.
    """
    total = jnp.sum(jnp.abs(x))  # a GPU's maximum drops NaN
    largest = jnp.where(total == total, jnp.max(jnp.abs(x)), total)
    scale = largest / _LARGEST_INT8
    inverse = jnp.where(scale > 0, 1.0 / scale, 0.0)
    scaled = x * inverse
    rounded = jnp.round(scaled) if target == "interpret" else (scaled + _ROUNDING) - _ROUNDING
    return rounded.astype(jnp.int8), scale


def write_head(
    refs: tuple[Any, Any],
    at: tuple[Array, Array, Array],
    x: Float[Array, " H"],
    dims: Array,
    fresh: Bool[Array, ""],
    target: Target,
) -> Float[Array, " H"]:
    """Write a head where it is `fresh`; return what others will read, in f32.

    Args:
        refs: pages [P, K, C, H], and of an 8-bit cache their scales [P, K, C], else None.
        at: page, kv head and place.
        x: zeros beyond the head dim.
        dims: elements of the padded head.
    """
    pages, scales = refs
    mask = (dims < pages.shape[3]) & fresh
    if scales is None:
        stored = x.astype(pages.dtype)
        plt.store(pages.at[*at, dims], stored, mask=mask)
        return stored.astype(jnp.float32)
    stored, scale = quantize_head(x, target)
    plt.store(pages.at[*at, dims], stored, mask=mask)
    plt.store(scales.at[at], scale, mask=fresh)
    return stored.astype(jnp.float32) * scale
