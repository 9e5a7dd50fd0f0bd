"""RMS norm against NumPy in f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.norm import rms_norm


def reference(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (3, 4, 16), (2, 1, 1)])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_rms_norm(shape, eps):
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal(shape, np.float32) * 3
    weight = rng.standard_normal(shape[-1], np.float32)
    found = jax.jit(rms_norm, static_argnums=2)(x, weight, eps)
    assert_allclose(found, reference(x, weight, eps), rtol=2e-6, atol=1e-6)


def test_rms_norm_of_zeros_is_zero_and_not_nan():
    assert_array_equal(rms_norm(jnp.zeros((2, 4)), jnp.ones(4), 1e-6), np.zeros((2, 4)))


def test_rms_norm_computes_in_f32_and_keeps_the_dtype():
    """Squares of 300 overflow f16; the result does not."""
    x = jnp.full((1, 64), 300.0, jnp.float16)
    found = rms_norm(x, jnp.ones(64), 1e-6)
    assert found.dtype == jnp.float16
    assert_allclose(found.astype(jnp.float32), 1.0)


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_a_row_of_rms_norm_does_not_depend_on_the_rows_beside_it(rows):
    x = np.random.default_rng(3).standard_normal((40, 200), np.float32)
    norm = jax.jit(rms_norm, static_argnums=2)
    weight = np.linspace(0.5, 2, 200, dtype=np.float32)
    whole = np.asarray(norm(x, weight, 1e-5))
    assert_array_equal(norm(x[7 : 7 + rows], weight, 1e-5), whole[7 : 7 + rows])
