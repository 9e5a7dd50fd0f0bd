"""Packed tensors hold exactly their file's values, whatever the type and shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.quant.formats import FORMATS, dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import dequantize_packed, pack, pack_numpy, take_rows
from rfjax.quant.types import BLOCK_SIZES, GGMLType

QUANTIZED = [format.type for format in FORMATS.values() if format.unpack]


def random_blocks(type: GGMLType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes; their f16 scales may be anything, NaN and Inf included."""
    elements, size = BLOCK_SIZES[type]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, columns // elements, size)).astype(np.uint8)


def widths(type: GGMLType) -> tuple[int, ...]:
    """Rows of one column and of several, and columns of 1, 2, 4 and 8 groups."""
    if type not in LAYOUTS:
        return (768,)
    return (256, 768) if BLOCK_SIZES[type][0] == 256 else (96, 128, 320)


@pytest.mark.parametrize("type", QUANTIZED, ids=lambda type: type.name)
def test_packing_loses_no_bit(type):
    for columns in widths(type):
        raw = random_blocks(type, 3, columns, columns)
        want = dequantize_numpy(raw, type, (3, columns))
        host = pack_numpy(raw, type)
        device = jax.jit(pack, static_argnums=1)(jnp.asarray(raw), type)
        assert host.shape == device.shape == (3, columns)
        assert device.nbytes == raw.nbytes
        for name, plane in device.planes.items():
            np.testing.assert_array_equal(plane, host.planes[name])
        got = np.asarray(jax.jit(dequantize_packed)(device))
        same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
        assert same.all()


@pytest.mark.parametrize("type", [GGMLType.Q5_0, GGMLType.Q6_K, GGMLType.IQ2_S])
def test_rows_and_experts_are_tensors(type):
    raw = random_blocks(type, 8, 512).reshape(2, 4, -1, BLOCK_SIZES[type][1])
    stack = jax.jit(pack, static_argnums=1)(jnp.asarray(raw), type)
    assert stack.shape == (2, 4, 512)
    values = np.asarray(jax.jit(dequantize_packed)(stack))
    np.testing.assert_array_equal(jax.jit(dequantize_packed)(stack[1]), values[1])
    ids = jnp.array([3, 0, 4, -1], jnp.int32)
    rows = np.asarray(jax.jit(take_rows, static_argnums=2)(stack[1], ids, jnp.dtype("float32")))
    np.testing.assert_array_equal(rows[:2], values[1][[3, 0]])
    assert np.isnan(rows[2:]).all()
