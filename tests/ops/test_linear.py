"""Linear products and embedding rows against NumPy in f64; bias, odd shapes, one row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.linear import embed, linear


def arrays(rng, t, k, n):
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    return draw(t, k), draw(n, k), draw(n)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("t", "k", "n"), [(1, 7, 3), (2, 5, 64), (17, 33, 9), (1, 1, 1)])
def test_linear_is_x_times_the_transposed_weight(t, k, n, with_bias):
    x, weight, bias = arrays(np.random.default_rng(t * k), t, k, n)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias * with_bias
    found = jax.jit(linear)(x, weight, bias if with_bias else None)
    assert found.shape == (t, n) and found.dtype == jnp.float32
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_linear_uses_each_axis_of_the_weight_as_stored():
    """A square weight read the wrong way round would go unnoticed by shapes alone."""
    x, weight, _ = arrays(np.random.default_rng(0), 3, 8, 8)
    found = np.asarray(linear(jnp.asarray(x), jnp.asarray(weight)))
    assert_allclose(found, x @ weight.T, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, x @ weight, atol=0.1)


def test_linear_keeps_the_dtype_of_x_and_sums_in_f32():
    """In bf16 sums, 4096 ones would stop at 256."""
    x = jnp.ones((1, 4096), jnp.bfloat16)
    weight = jnp.ones((2, 4096), jnp.float32)
    bias = jnp.asarray([0.0, 64.0])
    found = linear(x, weight, bias)
    assert found.dtype == jnp.bfloat16
    assert_array_equal(found.astype(jnp.float32), [[4096.0, 4160.0]])


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_a_row_of_linear_does_not_depend_on_the_rows_beside_it(rows):
    """Bit for bit, in f32 on the CPU: what makes prefill equal decode."""
    x, weight, bias = arrays(np.random.default_rng(1), 40, 96, 56)
    product = jax.jit(linear)
    whole = np.asarray(product(x, weight, bias))
    for start in (0, 40 - rows):
        part = np.asarray(product(x[start : start + rows], weight, bias))
        assert_array_equal(part, whole[start : start + rows])


def test_embed_takes_rows_and_casts():
    table = np.random.default_rng(2).standard_normal((5, 3), np.float32)
    ids = np.array([4, 0, 0, 2], np.int32)
    found = embed(jnp.asarray(ids), jnp.asarray(table), jnp.dtype("float32"))
    assert_array_equal(found, table[ids])
    assert embed(jnp.asarray(ids), jnp.asarray(table), jnp.dtype("bfloat16")).dtype == jnp.bfloat16


@pytest.mark.parametrize("bad", [5, 1000, 2**31 - 1, -6, -(2**31)])
def test_embed_gives_nan_for_ids_outside_the_vocabulary(bad):
    table = jnp.ones((5, 3))
    found = np.asarray(embed(jnp.asarray([bad, 1], jnp.int32), table, jnp.dtype("float32")))
    assert np.isnan(found[0]).all() and (found[1] == 1).all()


@pytest.mark.parametrize("bad", [-1, -5])
def test_embed_does_not_count_negative_ids_from_the_end(bad):
    table = jnp.ones((5, 3))
    found = np.asarray(embed(jnp.asarray([bad], jnp.int32), table, jnp.dtype("float32")))
    assert np.isnan(found).all()
