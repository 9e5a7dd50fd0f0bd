"""Bit-level helpers of the block decoders, written once for NumPy and JAX.

Every function takes arrays of either library; `xp` is the namespace (`numpy` or `jax.numpy`).
Floats are assembled with integer operations wherever a subnormal can occur on the way: XLA flushes
those in float arithmetic on the CPU, and conversions of f16 may do so on other devices.
"""

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array, a JAX array or a tracer: what the decoders take and give."""

SIGN = np.uint32(0x8000_0000)
INFINITY = np.uint32(0x7F80_0000)


def words16(data: Array) -> Array:
    """Little-endian 16-bit words: uint8 `[..., 2 n]` to uint32 `[..., n]`."""
    return data.view(np.uint16).astype(np.uint32)


def words32(data: Array) -> Array:
    """Little-endian 32-bit words: uint8 `[..., 4 n]` to uint32 `[..., n]`."""
    return data.view(np.uint32)


def fields(data: Array, width: int, count: int) -> Array:
    """Bit fields of each item, lowest first, side by side: `[..., n]` to `[..., n, count]`."""
    shifts = np.arange(count, dtype=data.dtype) * data.dtype.type(width)
    return (data[..., None] >> shifts.reshape((1,) * data.ndim + (count,))) & (2**width - 1)


def field_planes(data: Array, width: int, count: int) -> Array:
    """The same fields, one row of n items per field: `[..., n]` to `[..., count, n]`."""
    shifts = np.arange(count, dtype=data.dtype) * data.dtype.type(width)
    shifts = shifts.reshape((1,) * (data.ndim - 1) + (count, 1))
    return (data[..., None, :] >> shifts) & (2**width - 1)


def lookup(table: np.ndarray, index: Array, xp: ModuleType) -> Array:
    """`table[index]` for a 1-D table; indices are within range by construction."""
    # "clip" spares both libraries the handling of indices out of range.
    return xp.take(xp.asarray(table), index, mode="clip")


def f16(data: Array, xp: ModuleType) -> Array:
    """IEEE half floats: uint8 `[..., 2 n]` to float32 `[..., n]`, exact."""
    return f16_from_bits(words16(data), xp)


def f16_from_bits(half: Array, xp: ModuleType) -> Array:
    """The value of half floats given as their bits: uint32 `[...]` to float32 `[...]`, exact."""
    exponent = half & 0x7C00
    shifted = (half & 0x7FFF) << 13
    normal = shifted + np.uint32((127 - 15) << 23)
    special = shifted | INFINITY  # Inf or NaN, payload kept
    # A subnormal half is a small integer times 2^-24: a normal f32, so this product is safe.
    tiny = ((half & 0x03FF).astype(np.float32) * np.float32(2**-24)).view(np.uint32)
    bits = xp.where(exponent == 0, tiny, xp.where(exponent == 0x7C00, special, normal))
    return (((half & 0x8000) << 16) | bits).view(np.float32)


def bf16(data: Array) -> Array:
    """bfloat16: uint8 `[..., 2 n]` to float32 `[..., n]`, exact."""
    return (words16(data) << 16).view(np.float32)
