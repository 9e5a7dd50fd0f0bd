"""Gated activations against NumPy in f64."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rfjax.ops.activation import ACTIVATIONS, gated


def test_silu_gate():
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 4, 9), np.float32) * 4
    wide = gate.astype(np.float64)
    found = gated(jnp.asarray(gate), jnp.asarray(up), "silu")
    assert_allclose(found, wide / (1 + np.exp(-wide)) * up, rtol=1e-5, atol=1e-6)


def test_gate_and_up_are_not_interchangeable():
    gate, up = jnp.asarray([[2.0]]), jnp.asarray([[-1.0]])
    assert gated(gate, up, "silu")[0, 0] != gated(up, gate, "silu")[0, 0]


def test_far_values_neither_overflow_nor_become_nan():
    found = gated(jnp.asarray([[-1e30, 1e30]]), jnp.ones((1, 2)), "silu")
    assert_allclose(found, [[0, 1e30]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_dtype_of_the_gate_is_kept(name):
    gate = jnp.ones((2, 3), jnp.bfloat16)
    assert gated(gate, gate, name).dtype == jnp.bfloat16
