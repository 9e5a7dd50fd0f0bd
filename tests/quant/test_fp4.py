"""Every scale times every code of the 4-bit floats, against Python's exact arithmetic."""

import math

import jax.numpy as jnp
import numpy as np

from rfjax.quant.formats import FORMATS, dequantize, dequantize_numpy
from rfjax.quant.types import GGMLType

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [0.0] + [-value for value in E2M1[1:]]
CODES = np.array([low | (15 - low) << 4 for low in range(16)], np.uint8)


def e8m0(code: int) -> float:
    return math.ldexp(1.0, code - 127)


def ue4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if code == 0x7F:
        return 0.0  # NaN in the format, zero in ggml
    if exponent == 0:
        return math.ldexp(mantissa, -9)
    return math.ldexp(8 + mantissa, exponent - 10)


def decode_both(raw: np.ndarray, type: GGMLType, count: int) -> list[np.ndarray]:
    return [
        dequantize_numpy(raw, type, (count,)),
        np.asarray(dequantize(jnp.asarray(raw), type, (count,))),
    ]


def round_to_f32(values: list[float]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def test_mxfp4_over_all_exponents():
    raw = np.stack([np.concatenate([[np.uint8(e)], CODES]) for e in range(256)]).astype(np.uint8)
    order = [code & 15 for code in CODES] + [code >> 4 for code in CODES]
    expected = round_to_f32([e8m0(e) * E2M1[code] for e in range(256) for code in order])
    assert ((expected != 0) & (abs(expected) < 2.0**-126)).any()
    assert np.isinf(expected).any()
    for got in decode_both(raw, GGMLType.MXFP4, expected.size):
        np.testing.assert_array_equal(got.view("u4"), expected.view("u4"))


def test_mxfp4_unpacks_to_its_exact_exponent():
    raw = np.stack([np.concatenate([[np.uint8(e)], CODES]) for e in range(256)]).astype(np.uint8)
    unpack = FORMATS[GGMLType.MXFP4].unpack
    assert unpack is not None
    expected = np.array([e8m0(e) / 2 for e in range(256)])
    np.testing.assert_array_equal(unpack(raw, np).d.astype(np.float64), expected)


def test_nvfp4_over_all_scales():
    scales = np.arange(256, dtype=np.uint8).reshape(64, 4)
    halves = np.tile(np.concatenate([CODES[:8], CODES[8:]]), 2)
    raw = np.concatenate([scales, np.tile(halves, (64, 1))], axis=1)
    expected = []
    for row in range(64):
        for sub in range(4):
            codes = halves[8 * sub : 8 * sub + 8]
            order = [code & 15 for code in codes] + [code >> 4 for code in codes]
            expected += [E2M1[code] * ue4m3(int(scales[row, sub])) for code in order]
    for got in decode_both(raw, GGMLType.NVFP4, len(expected)):
        np.testing.assert_array_equal(got.view("u4"), round_to_f32(expected).view("u4"))
