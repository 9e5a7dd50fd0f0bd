"""Q1_0 and Q2_0 against a scalar reading of the format: the gguf package does not know them."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.quant.formats import FORMATS, dequantize, dequantize_numpy
from rfjax.quant.types import GGMLType

# One block each, written by hand: scale, bytes, and the start of what they decode to (in d).
BLOCKS = [
    (GGMLType.Q1_0, 0.5, bytes([0b0000_0101, 0xFF]) + bytes(14), [1, -1, 1, -1, -1, -1, -1, -1, 1]),
    (GGMLType.Q2_0, -2.0, bytes([0b11_10_01_00, 0b00_00_00_11]) + bytes(14), [-1, 0, 1, 2, 2, -1]),
]


def scalar_reference(block: bytes, bits: int) -> list[float]:
    (d,) = struct.unpack("<e", block[:2])
    values = []
    for element in range(8 * len(block[2:]) // bits):
        position = element * bits
        code = (block[2 + position // 8] >> (position % 8)) & (2**bits - 1)
        level = 2 * code - 1 if bits == 1 else code - 1
        values.append(float(level) * d)
    return values


@pytest.mark.parametrize(("type", "d", "codes", "levels"), BLOCKS, ids=["Q1_0", "Q2_0"])
def test_block_written_by_hand(type, d, codes, levels):
    block = np.frombuffer(struct.pack("<e", d) + codes, np.uint8)
    values = dequantize_numpy(block, type, (FORMATS[type].block_elements,))
    expected = np.array(levels, np.float32) * np.float32(d)
    np.testing.assert_array_equal(values[: len(levels)].view("u4"), expected.view("u4"))


@pytest.mark.parametrize(("type", "bits"), [(GGMLType.Q1_0, 1), (GGMLType.Q2_0, 2)])
def test_random_blocks_match_the_scalar_reference(type, bits):
    entry = FORMATS[type]
    raw = np.random.default_rng(bits).integers(0, 256, (16, entry.block_bytes), dtype=np.uint8)
    raw[0, :2] = [1, 0]  # the smallest subnormal scale
    raw[1, :2] = [0, 0x80]  # negative zero
    raw[2, :2] = [0, 0xFC]  # minus infinity
    expected = np.array([scalar_reference(row.tobytes(), bits) for row in raw], np.float32).ravel()
    shape = expected.shape
    numpy_values = dequantize_numpy(raw, type, shape)
    jax_values = np.asarray(dequantize(jnp.asarray(raw), type, shape))
    nan = np.isnan(expected)
    for got in (numpy_values, jax_values):
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(got[~nan].view("u4"), expected[~nan].view("u4"))
