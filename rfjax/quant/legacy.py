"""Blocks of 32 with one f16 scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, field_planes, fields
from rfjax.quant.unpacked import Unpacked


def _nibbles(data: Array) -> Array:
    """Low nibbles are the first half of the block, high ones the second: `[n, 16]` to `[n, 32]`."""
    return field_planes(data, 4, 2).reshape(-1, 32)


def _fifth_bits(data: Array) -> Array:
    """Bit 4 of each element, in place: uint8 `[n, 4]` to `[n, 32]`."""
    return fields(data, 1, 8).reshape(-1, 32) << 4


def unpack_q4_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 16 bytes of nibbles`: (nibble - 8) d."""
    q = _nibbles(blocks[:, 2:]).astype(np.int8) - 8
    return Unpacked(q[:, None, :], f16(blocks[:, :2], xp)[:, 0])


def unpack_q4_1(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, m f16, 16 bytes of nibbles`: nibble d + m."""
    dm = f16(blocks[:, :4], xp)
    q = _nibbles(blocks[:, 4:]).astype(np.int8)
    return Unpacked(q[:, None, :], dm[:, 0], dmin=-dm[:, 1])


def unpack_q5_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 32 fifth bits, 16 bytes of nibbles`: (5 bits - 16) d."""
    q = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).astype(np.int8) - 16
    return Unpacked(q[:, None, :], f16(blocks[:, :2], xp)[:, 0])


def unpack_q5_1(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, m f16, 32 fifth bits, 16 bytes of nibbles`: 5 bits d + m."""
    dm = f16(blocks[:, :4], xp)
    q = (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).astype(np.int8)
    return Unpacked(q[:, None, :], dm[:, 0], dmin=-dm[:, 1])


def unpack_q8_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 32 int8`."""
    return Unpacked(blocks[:, None, 2:].view(np.int8), f16(blocks[:, :2], xp)[:, 0])
