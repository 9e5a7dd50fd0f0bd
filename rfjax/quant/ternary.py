"""Ternary blocks of 256 with one f16 scale: TQ1_0, TQ2_0."""

from types import ModuleType

import numpy as np

from rfjax.quant.bits import Array, f16, field_planes
from rfjax.quant.unpacked import Unpacked

_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.uint8)


def _trits(data: Array, count: int) -> Array:
    """The first `count` base-3 digits of each byte: uint8 `[n, b]` to `[n, count * b]`.

    A byte holds v * 256 / 243 rounded up, v the number of five digits: a fixed-point fraction, so
    multiplying by 3^k modulo 256 brings digit k to the front and multiplying by 3 carries it out.
    """
    powers = _POWERS_OF_3[:count].reshape(1, count, 1)
    front = (data[:, None, :] * powers).astype(np.uint16)
    return ((front * 3) >> 8).reshape(-1, count * data.shape[1])


def unpack_tq1_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`32 + 16 bytes of five trits, 4 bytes of four, d f16`: (trit - 1) d."""
    runs = [_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4)]
    q = xp.concatenate(runs, axis=1).astype(np.int8) - 1
    return Unpacked(q[:, None, :], f16(blocks[:, 52:], xp)[:, 0])


def unpack_tq2_0(blocks: Array, xp: ModuleType) -> Unpacked:
    """`64 bytes of four 2-bit fields, d f16`: (field - 1) d."""
    codes = field_planes(blocks[:, :64].reshape(-1, 2, 32), 2, 4).reshape(-1, 1, 256)
    return Unpacked(codes.astype(np.int8) - 1, f16(blocks[:, 64:], xp)[:, 0])
