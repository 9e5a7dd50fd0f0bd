"""Blocks of 4-bit floats (E2M1): MXFP4 with an 8-bit exponent, NVFP4 with E4M3 scales.

E2M1 and the layout of MXFP4: OCP Microscaling Formats (MX) specification 1.0.
"""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import INFINITY, SIGN, Array, field_planes, lookup
from rfjax.quant.unpacked import Unpacked

# E2M1 values doubled, so that they are integers. Code 8, negative zero, decodes to plain zero.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def unpack_mxfp4(blocks: Array, xp: ModuleType) -> Unpacked:
    """`exponent byte e, 16 bytes of nibbles`: doubled E2M1 times 2^(e - 128).

    d is subnormal for e = 0 and 1: XLA's float arithmetic would flush it (see `decode_mxfp4`).
    """
    exponent = blocks[:, 0].astype(np.uint32)
    tiny = np.uint32(0x0020_0000) << (exponent & 1)
    d = xp.where(exponent < 2, tiny, (exponent - 1) << 23).view(np.float32)
    q = lookup(E2M1, field_planes(blocks[:, 1:], 4, 2).reshape(-1, 1, 32), xp)
    return Unpacked(q, d)


def decode_mxfp4(blocks: Array, xp: ModuleType) -> Array:
    """uint8 `[n, 17]` to float32 `[n, 32]`."""
    return scale_e2m1(unpack_mxfp4(blocks, xp).q[:, 0], blocks[:, 0], xp)


def scale_e2m1(q: Array, exponent: Array, xp: ModuleType) -> Array:
    """Doubled E2M1 integers times 2^(e - 128): int8 `[n, 32]`, uint8 `[n]` to float32 `[n, 32]`.

    The product with a power of two is an addition to the exponent field, done on the bits because
    results down to 2^-128 are subnormal in f32. The largest exponent (255) overflows to infinity.
    """
    bits = q.astype(np.float32).view(np.uint32)
    mantissa = bits & 0x7F_FFFF
    power = exponent[:, None].astype(np.int32) - 128
    exponent = ((bits >> 23) & 0xFF).astype(np.int32) + power
    # q has at most one bit behind its leading one: shifting by 1 or 2 loses nothing.
    shift = xp.clip(1 - exponent, 0, 2).astype(np.uint32)
    subnormal = (mantissa | 0x80_0000) >> shift
    normal = (xp.clip(exponent, 1, 254).astype(np.uint32) << 23) | mantissa
    finite = xp.where(exponent < 1, subnormal, normal)
    magnitude = xp.where(exponent > 254, INFINITY, finite)
    return xp.where(q == 0, np.uint32(0), magnitude | (bits & SIGN)).view(np.float32)


def unpack_nvfp4(blocks: Array, xp: ModuleType) -> Unpacked:
    """`4 scale bytes, 32 bytes of nibbles`: doubled E2M1 times half an unsigned E4M3.

    E4M3 is an integer times 2^-9, so the scales are integers beside a common d of 2^-10 (at most
    18 bits wide, 4 of them significant: products are exact). The NaN code 0x7F decodes to zero in
    ggml, and the sign bit of the scale byte is ignored.
    """
    code = blocks[:, :4].astype(np.int32)
    exponent, mantissa = (code >> 3) & 15, code & 7
    scales = xp.where(exponent == 0, mantissa, (mantissa + 8) << xp.maximum(exponent - 1, 0))
    scales = xp.where(code == 0x7F, 0, scales)
    q = lookup(E2M1, field_planes(blocks[:, 4:].reshape(-1, 4, 8), 4, 2).reshape(-1, 4, 16), xp)
    d = xp.full(blocks.shape[:1], 2**-10, np.float32)
    return Unpacked(q, d, scales)
