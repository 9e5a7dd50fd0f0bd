"""Row products and sums: values against NumPy, and bitwise independence of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.reduce import row_sum, rows_product


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_rows_product(batch, m):
    rng = np.random.default_rng(m)
    x = rng.standard_normal((*batch, m, 13), np.float32)
    w = rng.standard_normal((*batch, 5, 13), np.float32)
    expected = np.einsum("...mk,...nk->...mn", x.astype(np.float64), w.astype(np.float64))
    found = jax.jit(rows_product)(x, w)
    assert found.shape == (*batch, m, 5)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_product_of_bf16_is_f32():
    x = jnp.ones((1, 512), jnp.bfloat16)
    found = rows_product(x, x)
    assert found.dtype == jnp.float32 and found[0, 0] == 512


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_rows_of_a_product_do_not_depend_on_their_number(rows):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 64, 128), np.float32)
    w = rng.standard_normal((2, 72, 128), np.float32)
    product = jax.jit(rows_product)
    whole = np.asarray(product(x, w))
    assert_array_equal(product(x[:, 5 : 5 + rows], w), whole[:, 5 : 5 + rows])


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 300)])
def test_row_sum(shape):
    x = np.random.default_rng(5).standard_normal(shape, np.float32)
    found = jax.jit(row_sum)(x)
    assert found.shape == (*shape[:-1], 1)
    expected = x.astype(np.float64).sum(-1, keepdims=True)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_a_sum_does_not_depend_on_the_rows_beside_it(rows):
    x = np.random.default_rng(6).standard_normal((64, 1000), np.float32)
    total = jax.jit(row_sum)
    assert_array_equal(total(x[9 : 9 + rows]), np.asarray(total(x))[9 : 9 + rows])
