"""Tiles of packed weights against the exact weights: NVIDIA's instructions, and all else."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton as plt
from support import ptx

from rfjax.pallas.bf16_weights import Bf16Weights, constants
from rfjax.pallas.packed_matmul import Config, arranged
from rfjax.quant.formats import dequantize_numpy
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import pack_numpy
from rfjax.quant.random_blocks import with_scales
from rfjax.quant.types import BLOCK_SIZES, GGMLType

pytestmark = pytest.mark.quick_compile

ROWS, COLUMNS, GROUPS = 3, 4, 8

TOLERANCE = 3.5e-3
"""Relative error (norms) of weights rounded to bfloat16 (1.7e-3 on average) and of scales, which
are all alike here and may add 2e-3; measured 0 to 2.9e-3."""


@pytest.fixture
def no_machine(monkeypatch):
    """Loads are indexing, and PTX is computed."""

    def load(ref, mask=None, other=None, **_):
        values = ref.get()
        return values if mask is None else jnp.where(mask, values, jnp.asarray(other, values.dtype))

    def assembly(*args, **options):
        return [jnp.asarray(result) for result in ptx.elementwise_inline_asm(*args, **options)]

    monkeypatch.setattr(plt, "load", load)
    monkeypatch.setattr(plt, "elementwise_inline_asm", assembly)


@pytest.mark.usefixtures("no_machine")
@pytest.mark.parametrize("target", ["cuda", "interpret"])
@pytest.mark.parametrize("type", LAYOUTS, ids=lambda type: type.name)
def test_every_type(type, target):
    k = 256 * (COLUMNS + 1)  # of the second chunk, one column exists
    block, size = BLOCK_SIZES[type]
    bits = np.random.default_rng(int(type)).integers(0, 256, (ROWS, k // block, size), np.uint8)
    raw = np.asarray(with_scales(bits, type, 1.0))
    planes = pack_numpy(raw, type).planes
    weights = Bf16Weights(
        LAYOUTS[type],
        {name: jnp.asarray(plane.reshape(ROWS, -1)) for name, plane in planes.items()},
        jnp.asarray(constants(GROUPS, COLUMNS, target)),
        jnp.arange(ROWS),
        n_columns=COLUMNS + 1,
        n_groups=GROUPS,
        columns=COLUMNS,
        target=target,
    )
    exact = dequantize_numpy(raw, type, (ROWS, k))
    config = Config(16, 1, COLUMNS, 2, 1, 1, 1)
    want = np.asarray(arranged(jnp.asarray(exact), config, target), np.float64)
    got = np.zeros_like(want)
    for chunk in range(2):
        for first in range(0, GROUPS, 2):
            pieces = weights.groups(jnp.int32(chunk), jnp.int32(first), 2)
            for g, group in enumerate(pieces):
                for p, piece in enumerate(group):
                    assert piece.dtype == jnp.bfloat16
                    got[chunk, first + g, p] = np.asarray(piece.astype(jnp.float32))
    assert np.linalg.norm(got - want) < TOLERANCE * np.linalg.norm(want)
    assert np.max(np.abs(got - want)) < 0.02 * np.max(np.abs(want))
    assert not got[1, :, :, :, ~np.any(want[1] != 0, axis=(0, 1, 2))].any()


@pytest.mark.usefixtures("no_machine")
def test_a_wrong_instruction_shows(monkeypatch):
    monkeypatch.setitem(ptx._INSTRUCTIONS, "shr.b32", lambda a, n: a >> (n + np.uint32(1)))
    with pytest.raises(AssertionError):
        test_every_type(GGMLType.Q4_0, "cuda")
