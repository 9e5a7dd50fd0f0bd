"""One- and two-bit blocks with one f16 scale: Q1_0, Q2_0."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, fields
from rfjax.quant.unpacked import Unpacked


def unpack_q1_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 128 bits`: a set bit is d, a clear one -d."""
    bits = fields(blocks[:, 2:], 1, 8).reshape(-1, 1, 128)
    return Unpacked(bits.astype(np.int8) * 2 - 1, f16(blocks[:, :2], xp)[:, 0])


def unpack_q2_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 64 fields of 2 bits`: (field - 1) d."""
    codes = fields(blocks[:, 2:], 2, 4).reshape(-1, 1, 64)
    return Unpacked(codes.astype(np.int8) - 1, f16(blocks[:, :2], xp)[:, 0])
