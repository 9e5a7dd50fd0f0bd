"""Non-linear 4-bit quants: IQ4_NL, IQ4_XS. A nibble picks one of 16 unevenly spaced integers."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, field_planes, fields, lookup, words16
from rfjax.quant.unpacked import Unpacked

LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def unpack_iq4_nl(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 16 bytes of nibbles`, blocks of 32."""
    q = lookup(LEVELS, field_planes(blocks[:, 2:], 4, 2).reshape(-1, 1, 32), xp)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0])


def scales_iq4_xs(upper: Array, lower: Array) -> Array:
    """Signed scales of 8 sub-blocks, int32 `[n, 8]`.

    Args:
        upper: uint32 `[n, 1]`, eight fields of two bits.
        lower: uint8 `[n, 4]`, eight of four.
    """
    high = fields(upper, 2, 8).reshape(-1, 8).astype(np.int32)
    low = fields(lower, 4, 2).reshape(-1, 8).astype(np.int32)
    return (low | (high << 4)) - 32


def unpack_iq4_xs(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 8 upper scale fields of 2 bits, 8 lower ones of 4, 128 bytes of nibbles`."""
    scales = scales_iq4_xs(words16(blocks[:, 2:4]), blocks[:, 4:8])
    q = lookup(LEVELS, field_planes(blocks[:, 8:].reshape(-1, 8, 16), 4, 2), xp)
    return Unpacked(q.reshape(-1, 8, 32), f16(blocks[:, :2], xp)[:, 0], scales)
