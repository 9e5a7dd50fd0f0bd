"""Every type of `conformance/quant`, bit for bit: quantized tensors and random bit patterns."""

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.quant.formats import FORMATS, dequantize, dequantize_numpy
from rfjax.quant.types import BLOCK_SIZES, GGMLType

SHAPE = (8, 1024)
PLAIN = {"F32", "F64", "I8", "I16", "I32", "I64"}  # ggml has nothing to dequantize there
TYPES = [type for type in FORMATS if type.name not in PLAIN]


def canonical(values) -> np.ndarray:
    """Bits of float32 values, with one NaN for all."""
    values = np.asarray(values, np.float32)
    return np.where(np.isnan(values), np.uint32(0x7FC0_0000), values.view(np.uint32))


@pytest.fixture(scope="module")
def index(conformance) -> dict[GGMLType, list[str]]:
    lines = (conformance / "quant" / "INDEX.tsv").read_text().splitlines()[1:]
    return {GGMLType(int(row[0])): row for row in (line.split("\t") for line in lines)}


def test_every_type_of_the_index_is_decoded_here(index):
    assert set(index) == set(TYPES)
    for type, (_, name, elements, size, *_) in index.items():
        assert type.name.lower() == name.lower()
        assert BLOCK_SIZES[type] == (int(elements), int(size))


@pytest.mark.parametrize("kind", ["", ".rand"], ids=["quantized", "random"])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_values_are_ggmls_bit_for_bit(conformance, index, type, kind):
    stem = conformance / "quant" / (index[type][1] + kind)
    raw = np.fromfile(f"{stem}.q", np.uint8)
    expected = canonical(np.fromfile(f"{stem}.deq.f32", "<f4").reshape(SHAPE))
    np.testing.assert_array_equal(canonical(dequantize_numpy(raw, type, SHAPE)), expected)
    in_jax = dequantize(jnp.asarray(raw), type, SHAPE)
    np.testing.assert_array_equal(canonical(in_jax), expected)
