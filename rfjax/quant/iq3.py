"""Grid quants of about 3 bits: IQ3_XXS, IQ3_S. Four elements are a grid point with signs."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, fields, lookup, words32
from rfjax.quant.grids import IQ3_S_GRID, IQ3_XXS_GRID, apply_signs, even_signs
from rfjax.quant.unpacked import Unpacked


def unpack_iq3_xxs(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 64 index bytes, 8 words: 4 x 7 sign bits, 4 bits of scale`.

    Elements are 4, 12, ..., 52, 62; the scale (s + 1/2) / 2 is (2 s + 1) / 4, the 4 moved into d.
    """
    digits = fields(lookup(IQ3_XXS_GRID, blocks[:, 2:66], xp), 3, 4).astype(np.int8)
    # Steps of 8 from 4, and two more at the top: 7 + 1 is the only sum with bit 3 set.
    values = digits * 8 + 4 + (((digits + 1) >> 3) << 1)
    words = words32(blocks[:, 66:])
    signs = even_signs(fields(words, 7, 4).reshape(-1, 32))
    scales = (words >> 28).astype(np.int32) * 2 + 1
    q = apply_signs(values.reshape(-1, 32, 8), signs).reshape(-1, 8, 32)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0] * np.float32(0.25), scales)


def unpack_iq3_s(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 64 low index bytes, 8 bytes of ninth bits, 32 sign bytes, 4 of nibble scales`.

    Elements are 1, 3, ..., 15; the scale of 32 elements is 2 s + 1.
    """
    high = fields(blocks[:, 66:74], 1, 8).reshape(-1, 64).astype(np.uint32)
    index = blocks[:, 2:66].astype(np.uint32) | (high << 8)
    digits = fields(lookup(IQ3_S_GRID, index, xp), 3, 4).astype(np.int8)
    signs = blocks[:, 74:106].astype(np.uint32)
    q = apply_signs((digits * 2 + 1).reshape(-1, 32, 8), signs).reshape(-1, 8, 32)
    scales = fields(blocks[:, 106:], 4, 2).reshape(-1, 8).astype(np.int32) * 2 + 1
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0], scales)
