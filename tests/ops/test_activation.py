"""Activations against NumPy in f64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.activation import ACTIVATIONS, GATES, activate, gated

pytestmark = pytest.mark.quick_compile

erf = np.vectorize(math.erf)

REFERENCES = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu_squared": lambda x: np.where(x > 0, x, 0) ** 2,
}

gate = jax.jit(gated, static_argnames="activation")
alone = jax.jit(activate, static_argnames="activation")


@pytest.mark.parametrize("width", [9, 32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name, width):
    x, up = np.random.default_rng(0).standard_normal((2, 40, width), np.float32) * 3
    expected = REFERENCES[name](x.astype(np.float64))
    assert_allclose(alone(x, name), expected, rtol=3e-6, atol=3e-7)
    assert_allclose(gate(x, up, name), expected * up, rtol=3e-6, atol=3e-6)


def test_activations_differ_from_each_other():
    x = np.linspace(-3, 3, 32, dtype=np.float32)[None, :]
    results = [np.asarray(gate(x, x + 1, name)) for name in GATES]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert np.abs(a - b).max() > 1e-4


def test_limited_swiglu():
    """Limits of both, of the gate from above only, and 1 beside the gate."""
    x, up = np.random.default_rng(1).standard_normal((2, 40, 32), np.float32) * 6
    limited = np.minimum(x.astype(np.float64), 7)
    expected = limited / (1 + np.exp(-1.702 * limited)) * (np.clip(up, -7, 7) + 1)
    assert (x > 7).any() and (x < -7).any() and (up > 7).any() and (up < -7).any()
    assert_allclose(gate(x, up, "swiglu_oai"), expected, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_gate_and_up_are_not_interchangeable(name):
    a, b = jnp.asarray([[2.0]]), jnp.asarray([[-1.0]])
    assert gate(a, b, name)[0, 0] != gate(b, a, name)[0, 0]


@pytest.mark.parametrize("name", GATES)
def test_far_values_neither_overflow_nor_become_nan(name):
    far = jnp.asarray([[-1e30, 1e30]])
    at_best = {"relu_squared": np.inf, "swiglu_oai": 14.0}.get(name, 1e30)
    assert_allclose(gate(far, jnp.ones((1, 2)), name), [[0, at_best]], rtol=1e-4)
    if name in ACTIVATIONS:
        assert_allclose(alone(far, name), [[0, at_best]])


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("width", [5, 8, 33, 96])
def test_a_row_does_not_depend_on_the_rows_beside_it(name, width):
    """Not in a single bit."""
    x, up = np.random.default_rng(width).standard_normal((2, 900, width), np.float32) * 3
    functions = [gate] if name not in ACTIVATIONS else [gate, lambda x, up, name: alone(x, name)]
    for function in functions:
        whole = np.asarray(function(x, up, name))
        for rows in (1, 37):
            for first in range(0, 900 - rows, 53):
                at = slice(first, first + rows)
                assert_array_equal(function(x[at], up[at], name), whole[at])


@pytest.mark.parametrize("name", GATES)
def test_the_dtype_of_the_gate_is_kept(name):
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert gate(x, x, name).dtype == jnp.bfloat16
    if name in ACTIVATIONS:
        assert alone(x, name).dtype == jnp.bfloat16
