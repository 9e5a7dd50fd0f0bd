"""K-quants: super-blocks of 256 with integer scales per sub-block, Q2_K to Q6_K."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, field_planes
from rfjax.quant.unpacked import Unpacked


def scales_and_mins_q2_k(packed: Array, xp: ModuleType) -> tuple[Array, Array]:
    """4-bit scales (low) and minima (high) of 16 sub-blocks: uint8 `[n, 16]` to int32 `[n, 16]`."""
    nibbles = field_planes(packed, 4, 2).astype(np.int32)
    return nibbles[:, 0], nibbles[:, 1]


def unpack_q2_k(blocks: Array, xp: ModuleType) -> Unpacked:
    """`16 bytes of scale and minimum nibbles, 64 bytes of 2-bit fields, d f16, dmin f16`."""
    scales, mins = scales_and_mins_q2_k(blocks[:, :16], xp)
    q = field_planes(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    dm = f16(blocks[:, 80:], xp)
    return Unpacked(q.astype(np.int8), dm[:, 0], scales, dm[:, 1], mins)


def scales_q3_k(packed: Array) -> Array:
    """Signed 6-bit scales of 16 sub-blocks: uint8 `[n, 12]` to int32 `[n, 16]`."""
    low = field_planes(packed[:, :8], 4, 2).reshape(-1, 16)
    high = field_planes(packed[:, 8:], 2, 4).reshape(-1, 16)
    return ((high << 4) | low).astype(np.int32) - 32


def unpack_q3_k(blocks: Array, xp: ModuleType) -> Unpacked:
    """`32 bytes of high bits, 64 bytes of 2-bit fields, 12 bytes of 6-bit scales, d f16`."""
    high = field_planes(blocks[:, :32], 1, 8).reshape(-1, 16, 16)
    low = field_planes(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    # A clear high bit subtracts 4: the three bits are the element plus 4.
    q = ((high << 2) | low).astype(np.int8) - 4
    return Unpacked(q, f16(blocks[:, 108:], xp)[:, 0], scales_q3_k(blocks[:, 96:108]))


def scales_and_mins(packed: Array, xp: ModuleType) -> tuple[Array, Array]:
    """6-bit scales and minima of 8 sub-blocks: uint8 `[n, 12]` to two int32 `[n, 8]`.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low six bits; scales and minima 4-7 have
    their low nibbles in bytes 8-11, and their upper two bits on top of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = [first & 63, (third & 15) | ((first >> 6) << 4)]
    mins = [second & 63, (third >> 4) | ((second >> 6) << 4)]
    return (
        xp.concatenate(scales, axis=1).astype(np.int32),
        xp.concatenate(mins, axis=1).astype(np.int32),
    )


def unpack_q4_k(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, dmin f16, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles`."""
    dm = f16(blocks[:, :4], xp)
    scales, mins = scales_and_mins(blocks[:, 4:16], xp)
    q = field_planes(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    return Unpacked(q.astype(np.int8), dm[:, 0], scales, dm[:, 1], mins)


def unpack_q5_k(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, dmin f16, 12 bytes of scales and minima, 32 of fifth bits, 128 of nibbles`."""
    dm = f16(blocks[:, :4], xp)
    scales, mins = scales_and_mins(blocks[:, 4:16], xp)
    high = field_planes(blocks[:, 16:48], 1, 8)
    low = field_planes(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    return Unpacked(((high << 4) | low).astype(np.int8), dm[:, 0], scales, dm[:, 1], mins)


def unpack_q6_k(blocks: Array, xp: ModuleType) -> Unpacked:
    """`128 bytes of nibbles, 64 bytes of upper 2-bit fields, 16 int8 scales, d f16`."""
    low = field_planes(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 16, 16)
    high = field_planes(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
    q = ((high << 4) | low).astype(np.int8) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.int32)
    return Unpacked(q, f16(blocks[:, 208:], xp)[:, 0], scales)
