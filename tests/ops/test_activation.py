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


def exact_gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_of_halves(x):
    """As ggml has it: f16 in, f16 out, and what is beyond 10 as it is."""
    inside = exact_gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16)
    return np.where(np.abs(x) < 10, inside.astype(np.float64), np.where(x > 0, x, 0))


REFERENCES = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": gelu_of_halves,
    "gelu_erf": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu_squared": lambda x: np.where(x > 0, x, 0) ** 2,
}


@jax.jit
def results(x, up):
    """Of every function: of gated networks, and of those without a gate."""
    return (
        {name: gated(x, up, name) for name in GATES},
        {name: activate(x, name) for name in ACTIVATIONS},
    )


@pytest.mark.parametrize("width", [9, 32])
def test_every_activation(width):
    x, up = np.random.default_rng(0).standard_normal((2, 40, width), np.float32) * 3
    of_gates, alone = results(x, up)
    assert set(alone) == set(REFERENCES)
    for name, reference in REFERENCES.items():
        expected = reference(x.astype(np.float64))
        if name == "gelu":  # a result between two f16 may be rounded to the other one
            assert_allclose(alone[name], expected, rtol=2**-10, atol=2**-14)
            assert np.mean(np.asarray(alone[name]) == expected.astype(np.float32)) > 0.99
            assert_allclose(of_gates[name], alone[name] * up, rtol=3e-6, atol=3e-6)
            continue
        assert_allclose(alone[name], expected, rtol=3e-6, atol=3e-7, err_msg=name)
        assert_allclose(of_gates[name], expected * up, rtol=3e-6, atol=3e-6, err_msg=name)


def test_gelu_is_rounded_to_halves_below_ten_only():
    x = np.array([[-11.0, -10.0, -1.2345, 0.5, 3.3333, 9.99, 10.0, 12.3456789]], np.float32)
    found = np.asarray(results(x, np.ones_like(x))[1]["gelu"])
    expected = np.concatenate([gelu_of_halves(x[:, :6].astype(np.float64)), x[:, 6:]], axis=1)
    assert_allclose(found, expected, rtol=2**-10, atol=2**-14)
    assert found[0, 6:].tolist() == x[0, 6:].tolist() and found[0, 0] == found[0, 1] == 0
    inside = found[0, :6]
    assert (inside == inside.astype(np.float16).astype(np.float32)).all()


def test_activations_differ_from_each_other():
    x = np.linspace(-3, 3, 32, dtype=np.float32)[None, :]
    found = [np.asarray(result) for result in results(x, x + 1)[0].values()]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert np.abs(a - b).max() > 1e-4


def test_limited_swiglu():
    """Limits of both, of the gate from above only, and 1 beside the gate."""
    x, up = np.random.default_rng(1).standard_normal((2, 40, 32), np.float32) * 6
    limited = np.minimum(x.astype(np.float64), 7)
    expected = limited / (1 + np.exp(-1.702 * limited)) * (np.clip(up, -7, 7) + 1)
    assert (x > 7).any() and (x < -7).any() and (up > 7).any() and (up < -7).any()
    assert_allclose(results(x, up)[0]["swiglu_oai"], expected, rtol=3e-6, atol=1e-6)


def test_gate_and_up_are_not_interchangeable():
    a, b = jnp.asarray([[2.0]]), jnp.asarray([[-1.0]])
    for name, result in results(a, b)[0].items():
        assert result[0, 0] != results(b, a)[0][name][0, 0], name


def test_far_values_neither_overflow_nor_become_nan():
    of_gates, alone = results(jnp.asarray([[-1e30, 1e30]]), jnp.ones((1, 2)))
    assert_allclose(of_gates.pop("swiglu_oai"), [[0, 14]], rtol=1e-5)
    for name, result in [*of_gates.items(), *alone.items()]:
        assert_allclose(result, [[0, np.inf if name == "relu_squared" else 1e30]], err_msg=name)


@pytest.mark.parametrize("width", [5, 8, 33, 96])
def test_a_row_does_not_depend_on_the_rows_beside_it(width):
    """Not in a single bit."""
    x, up = np.random.default_rng(width).standard_normal((2, 900, width), np.float32) * 3
    whole = jax.tree.map(np.asarray, results(x, up))
    for rows in (1, 37):
        for first in range(0, 900 - rows, 53):
            at = slice(first, first + rows)
            expected = jax.tree.map(lambda result, at=at: result[at], whole)
            jax.tree.map(assert_array_equal, results(x[at], up[at]), expected)


def test_the_dtype_of_the_gate_is_kept():
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert all(result.dtype == jnp.bfloat16 for result in jax.tree.leaves(results(x, x)))
