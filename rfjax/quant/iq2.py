"""Grid quants of about 2 bits: IQ2_XXS, IQ2_XS, IQ2_S.

Eight elements are a grid point of {8, 25, 43} with signs. The scale of a sub-block is
(s + 1/2) / 4, written (2 s + 1) / 8 with the 8 moved into d: exact.
"""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, fields, lookup, words16, words32
from rfjax.quant.grids import IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, apply_signs, even_signs
from rfjax.quant.unpacked import Unpacked

_EIGHTH = np.float32(0.125)


def _points(grid: np.ndarray, index: Array, signs: Array, xp: ModuleType) -> Array:
    """Signed elements: grid indices and sign bytes `[n, 32]` to int8 `[n, 32, 8]`."""
    digits = fields(lookup(grid, index, xp), 2, 8).astype(np.int8)
    # 0, 1, 2 stand for 8, 25, 43: steps of 17, and one more at the top.
    return apply_signs(digits * 17 + 8 + (digits >> 1), signs)


def _nibble_scales(data: Array) -> Array:
    """Odd integers 2 s + 1 of 16 sub-blocks: uint8 `[n, 8]` to int32 `[n, 16]`."""
    return fields(data, 4, 2).reshape(-1, 16).astype(np.int32) * 2 + 1


def unpack_iq2_xxs(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 8 x (4 index bytes, one word: 4 x 7 sign bits, 4 bits of scale)`."""
    groups = blocks[:, 2:].reshape(-1, 8, 8)
    index = groups[:, :, :4].reshape(-1, 32)
    words = words32(groups[:, :, 4:])[:, :, 0]
    signs = even_signs(fields(words, 7, 4).reshape(-1, 32))
    scales = (words >> 28).astype(np.int32) * 2 + 1
    q = _points(IQ2_XXS_GRID, index, signs, xp).reshape(-1, 8, 32)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0] * _EIGHTH, scales)


def unpack_iq2_xs(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 32 words of 9 index and 7 sign bits, 8 bytes of nibble scales`."""
    words = words16(blocks[:, 2:66])
    q = _points(IQ2_XS_GRID, words & 511, even_signs(words >> 9), xp).reshape(-1, 16, 16)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0] * _EIGHTH, _nibble_scales(blocks[:, 66:]))


def unpack_iq2_s(blocks: Array, xp: ModuleType) -> Unpacked:
    """`d f16, 32 low index bytes, 32 sign bytes, 8 bytes of upper index bits, 8 of scales`."""
    high = fields(blocks[:, 66:74], 2, 4).reshape(-1, 32).astype(np.uint32)
    index = blocks[:, 2:34].astype(np.uint32) | (high << 8)
    signs = blocks[:, 34:66].astype(np.uint32)
    q = _points(IQ2_S_GRID, index, signs, xp).reshape(-1, 16, 16)
    return Unpacked(q, f16(blocks[:, :2], xp)[:, 0] * _EIGHTH, _nibble_scales(blocks[:, 74:]))
