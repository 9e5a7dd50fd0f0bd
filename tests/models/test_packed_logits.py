"""Packed weights give the logits of plain ones, bit for bit."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.random_model import random_tokens
from support.typed_model import SHAPES, save_typed

from rfjax.io.load import load
from rfjax.models.decoder import forward
from rfjax.quant.types import GGMLType

run = jax.jit(forward, static_argnames="config")


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("dense", [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F16]),
        ("dense", [GGMLType.Q3_K, GGMLType.Q5_K, GGMLType.IQ4_XS, GGMLType.Q2_K]),
        ("tied", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q5_1, GGMLType.IQ1_M]),
        ("tied", [GGMLType.Q6_K, GGMLType.Q4_K, GGMLType.F16]),
        ("experts", [GGMLType.Q4_K, GGMLType.Q5_1, GGMLType.F16]),
        ("experts", [GGMLType.Q3_K, GGMLType.IQ4_XS, GGMLType.Q8_0, GGMLType.Q2_K]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(t.name for t in value),
)
def test_packed_logits_are_those_of_plain_weights_bit_for_bit(tmp_path, name, types):
    path = save_typed(tmp_path / "m.gguf", SHAPES[name], types)
    packed, plain = load(path, weights="packed"), load(path, weights="dequantized")
    tokens = random_tokens(0, 20, 40)
    expected = np.asarray(run(plain.params, tokens, config=plain.config))
    assert np.isfinite(expected).all() and expected.std() > 0
    assert_array_equal(run(packed.params, tokens, config=packed.config), expected)
