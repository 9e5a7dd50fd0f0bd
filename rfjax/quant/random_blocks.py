"""Random blocks of any GGML type whose values are finite and of a chosen standard deviation.

All bits of a block are random but those of its scales, which give the values their size. The sign
of a block's scale is random too, so that values have no mean whatever the type's codes have.
"""

import functools
from typing import NamedTuple

import numpy as np

from rfjax.quant.bits import Array
from rfjax.quant.formats import FORMATS, dequantize_numpy
from rfjax.quant.types import GGMLType


class _Scales(NamedTuple):
    """Where the f16 scale `d` of a block starts, and a second one that is `ratio` times `d`."""

    d: int
    minimum: int | None = None
    ratio: float = 0.0


# The ratios are those that centre a block's values.
_F16_SCALES = {
    GGMLType.Q4_0: _Scales(0),
    GGMLType.Q4_1: _Scales(0, 2, -7.5),
    GGMLType.Q5_0: _Scales(0),
    GGMLType.Q5_1: _Scales(0, 2, -15.5),
    GGMLType.Q8_0: _Scales(0),
    GGMLType.Q1_0: _Scales(0),
    GGMLType.Q2_0: _Scales(0),
    GGMLType.TQ1_0: _Scales(52),
    GGMLType.TQ2_0: _Scales(64),
    GGMLType.Q2_K: _Scales(80, 82, 1.5),
    GGMLType.Q3_K: _Scales(108),
    GGMLType.Q4_K: _Scales(0, 2, 7.5),
    GGMLType.Q5_K: _Scales(0, 2, 15.5),
    GGMLType.Q6_K: _Scales(208),
    GGMLType.IQ1_S: _Scales(0),
    GGMLType.IQ2_XXS: _Scales(0),
    GGMLType.IQ2_XS: _Scales(0),
    GGMLType.IQ2_S: _Scales(0),
    GGMLType.IQ3_XXS: _Scales(0),
    GGMLType.IQ3_S: _Scales(0),
    GGMLType.IQ4_NL: _Scales(0),
    GGMLType.IQ4_XS: _Scales(0),
}
_BYTE_SCALES = {GGMLType.MXFP4: (0,), GGMLType.NVFP4: (0, 1, 2, 3)}
"""Where a block's one-byte scales stand."""

_IQ1_M_NIBBLES = (49, 51, 53, 55)
"""Bytes whose high nibbles make up the f16 scale of an IQ1_M block, lowest first."""

_SAMPLE = 1024
"""Blocks from which a type's deviation is estimated: to within a few percent."""


def with_scales(blocks: Array, type: GGMLType, deviation: float) -> Array:
    """Random blocks with their scales set; of NumPy or JAX, as they come.

    Args:
        blocks: uint8 `[..., bytes of a block]`, all bits random.
        type: any quantized type.
        deviation: standard deviation of the values, about: the scales of MXFP4 are powers of two,
            and those of NVFP4 are few.
    """
    ones = (1,) * (blocks.ndim - 1)
    if type in _BYTE_SCALES:
        keep, fixed = _byte_scale(type, _byte_for(type, deviation))
        return (blocks & keep.reshape(*ones, -1)) | fixed.reshape(*ones, -1)
    masks = _f16_scales(type, deviation / _unit_deviation(type))
    keep, fixed, sign = (mask.reshape(*ones, -1) for mask in masks)
    at = int(np.flatnonzero(sign)[0])
    negative = (blocks[..., at : at + 1] >> np.uint8(7)) * np.uint8(255)
    return ((blocks & keep) | fixed) ^ (negative & sign)


def _f16_scales(type: GGMLType, d: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits of a block that stay random, those that scales of `d` set, and the scales' signs."""
    keep = np.full(FORMATS[type].block_bytes, 255, np.uint8)
    fixed, sign = np.zeros_like(keep), np.zeros_like(keep)
    if type == GGMLType.IQ1_M:
        bits = int(np.float16(d).view(np.uint16))
        for i, at in enumerate(_IQ1_M_NIBBLES):
            keep[at], fixed[at] = 15, (bits >> (4 * i) & 15) << 4
        sign[_IQ1_M_NIBBLES[-1]] = 128
        return keep, fixed, sign
    scales = _F16_SCALES[type]
    for at, value in ((scales.d, d), (scales.minimum, d * scales.ratio)):
        if at is not None:
            keep[at : at + 2] = 0
            fixed[at : at + 2] = np.array([value], "<f2").view(np.uint8)
            sign[at + 1] = 128
    return keep, fixed, sign


def _byte_scale(type: GGMLType, byte: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of a block that stay random, and those that scales of `byte` set."""
    keep = np.full(FORMATS[type].block_bytes, 255, np.uint8)
    fixed = np.zeros_like(keep)
    at = list(_BYTE_SCALES[type])
    keep[at], fixed[at] = 0, byte
    return keep, fixed


def _sample(type: GGMLType, n_blocks: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n_blocks, FORMATS[type].block_bytes), dtype=np.uint8)


def _deviation(blocks: np.ndarray, type: GGMLType) -> float:
    """Deviation of the values from 0: their mean is 0 once signs are random."""
    values = dequantize_numpy(blocks, type, (blocks.shape[0] * FORMATS[type].block_elements,))
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@functools.cache
def _unit_deviation(type: GGMLType) -> float:
    """Deviation of the values of random blocks with scales of 1."""
    keep, fixed, _ = _f16_scales(type, 1.0)
    return _deviation((_sample(type, _SAMPLE) & keep) | fixed, type)


@functools.cache
def _byte_for(type: GGMLType, deviation: float) -> int:
    """The scale byte that brings values nearest to a deviation."""
    blocks = _sample(type, 16)
    found = []
    for byte in range(1, 127):  # positive and finite in both encodings
        keep, fixed = _byte_scale(type, byte)
        found.append((abs(np.log(_deviation((blocks & keep) | fixed, type) / deviation)), byte))
    return min(found)[1]
