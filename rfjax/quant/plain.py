"""Plain numbers, one to a block: floats and integers of GGUF files as float32.

F32, F16 and BF16 are exact; F64 and the wide integers round to nearest, ties to even. The 64-bit
types are taken as pairs of 32-bit words, because JAX has no 64-bit types unless told to.
"""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import INFINITY, SIGN, Array, bf16, f16, words32


def decode_f32(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 4]` to float32 `[n, 1]`."""
    return words32(blocks).view(np.float32)


def decode_f16(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 2]` to float32 `[n, 1]`."""
    return f16(blocks, xp)


def decode_bf16(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 2]` to float32 `[n, 1]`."""
    return bf16(blocks)


def decode_f64(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 8]` to float32 `[n, 1]`, rounded to nearest even, subnormals included."""
    words = words32(blocks)
    low, high = words[:, :1], words[:, 1:]
    exponent = (high >> 20) & 0x7FF
    # 26 bits: the 24 of an f32, the first bit behind them, and whether anything follows.
    fraction = ((high & 0xF_FFFF) << 3) | (low >> 29)
    behind = ((low >> 28) & 1) << 1 | ((low & 0x0FFF_FFFF) != 0).astype(np.uint32)
    wide = ((fraction | 0x80_0000) << 2) | behind

    target = exponent.astype(np.int32) - (1023 - 127)
    shift = xp.clip(3 - target, 2, 28).astype(np.uint32)
    half = np.uint32(1) << (shift - 1)
    kept = wide >> shift
    rest = wide & ((half << 1) - 1)
    up = (rest > half) | ((rest == half) & ((kept & 1) == 1))
    # The leading bit of a normal number adds one to the exponent field, and a carry one more.
    finite = (xp.clip(target - 1, 0, 254).astype(np.uint32) << 23) + kept + up.astype(np.uint32)

    nan = (exponent == 0x7FF) & (((high & 0xF_FFFF) | low) != 0)
    bits = xp.where(target >= 255, INFINITY, finite) | (nan.astype(np.uint32) << 22)
    return (bits | (high & SIGN)).view(np.float32)


def decode_i8(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 1]` to float32 `[n, 1]`, exact."""
    return blocks.view(np.int8).astype(np.float32)


def decode_i16(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 2]` to float32 `[n, 1]`, exact."""
    return blocks.view(np.int16).astype(np.float32)


def decode_i32(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 4]` to float32 `[n, 1]`, rounded to nearest even."""
    return blocks.view(np.int32).astype(np.float32)


def decode_i64(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 8]` to float32 `[n, 1]`, rounded to nearest even."""
    words = words32(blocks)
    low, high = words[:, :1], words[:, 1:]
    negative = (high & SIGN) != 0
    # Magnitude: two's complement over two words.
    carry = (low == 0).astype(np.uint32)
    high = xp.where(negative, ~high + carry, high)
    low = xp.where(negative, ~low + np.uint32(1), low)
    # Shift the leading one up to bit 63; then the upper word with a sticky bit decides rounding.
    scale = xp.ones_like(high, dtype=np.float32) * np.float32(2**32)
    for step in (32, 16, 8, 4, 2, 1):
        small = high < np.uint32(2 ** (32 - step)) if step < 32 else high == 0
        moved = low if step == 32 else (high << step) | (low >> (32 - step))
        left = xp.zeros_like(low) if step == 32 else low << step
        high = xp.where(small, moved, high)
        low = xp.where(small, left, low)
        scale = xp.where(small, scale * np.float32(2.0**-step), scale)
    value = (high | (low != 0).astype(np.uint32)).astype(np.float32) * scale
    return xp.where(negative, -value, value)
