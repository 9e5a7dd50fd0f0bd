"""Grid quants of about 1.5 bits: IQ1_S, IQ1_M.

Eight elements are a grid point of {-1, 0, 1}, moved as a whole by +1/8 or -1/8. In eighths that is
an integer, 8 g +- 1, and d is divided by 8: exact, and a power of two away from ggml's order.
"""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, f16_from_bits, fields, lookup, words16
from rfjax.quant.grids import IQ1_GRID
from rfjax.quant.unpacked import Unpacked

_EIGHTH = np.float32(0.125)


def _points(index: Array, minus: Array, xp: ModuleType) -> Array:
    """Elements in eighths: indices and shift bits `[n, 32]` to int8 `[n, 32, 8]`."""
    digits = fields(lookup(IQ1_GRID, index, xp), 2, 8).astype(np.int8)
    shift = 1 - 2 * minus.astype(np.int8)
    return (digits - 1) * 8 + shift[:, :, None]


def unpack_iq1_s(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 32 bytes of low index bits, 8 words`.

    A word of a sub-block of 32: four times 3 upper index bits, 3 bits of scale, the shift's sign.
    """
    words = words16(blocks[:, 34:])
    high = fields(words, 3, 4).reshape(-1, 32)
    index = blocks[:, 2:34].astype(np.uint32) | (high << 8)
    minus = xp.repeat(words >> 15, 4, axis=1)
    scales = ((words >> 12) & 7).astype(np.int32) * 2 + 1
    q = _points(index, minus, xp).reshape(-1, 8, 32)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0] * _EIGHTH, scales)


def unpack_iq1_m(blocks: Array, xp: ModuleType) -> Unpacked:
    """`32 bytes of low index bits, 16 bytes of nibbles, 4 words of scales`.

    A nibble holds 3 upper index bits and the shift's sign for one group of eight. The scale words
    hold four 3-bit scales each (sub-blocks of 16) and, on top, one nibble of the f16 scale.
    """
    words = words16(blocks[:, 48:])
    nibbles = fields(blocks[:, 32:48], 4, 2).reshape(-1, 32)
    index = blocks[:, :32].astype(np.uint32) | ((nibbles & 7).astype(np.uint32) << 8)
    top = words >> 12
    half = top[:, 0] | (top[:, 1] << 4) | (top[:, 2] << 8) | (top[:, 3] << 12)
    scales = fields(words, 3, 4).reshape(-1, 16).astype(np.int32) * 2 + 1
    q = _points(index, nibbles >> 3, xp).reshape(-1, 16, 16)
    return Unpacked(q, f16_from_bits(half, xp) * _EIGHTH, scales)
