"""Row products and sums: values against NumPy, and bitwise independence of rows.

That of attention, which is made of them, is here as well: what compiles it must be what users have.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.attention import attention
from rfjax.ops.mask import Mask
from rfjax.ops.norm import layer_norm
from rfjax.ops.reduce import repeated, row_sum, rows_product


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


@pytest.mark.parametrize(("length", "batch"), [(1, 1), (3, 2), (16, 1)])
def test_a_row_of_attention_does_not_depend_on_what_is_beside_it(length, batch):
    """Bit for bit, in f32 on the CPU: other queries, other sequences."""
    rng = np.random.default_rng(7)
    q = rng.standard_normal((3, 40, 4, 32), np.float32) * 2
    k = rng.standard_normal((3, 2, 64, 32), np.float32)
    v = rng.standard_normal((3, 2, 32, 64), np.float32)
    jitted = jax.jit(attention, static_argnames=("mask", "scale"))
    positions = np.broadcast_to(np.arange(20, 60, dtype=np.int32), (3, 40))
    lengths = np.array([60, 64, 61], np.int32)
    whole = np.asarray(
        jitted(q, k, v, query_positions=positions, key_lengths=lengths, mask=Mask(), scale=0.2)
    )
    rows, some = slice(1, 1 + batch), slice(11, 11 + length)
    part = jitted(
        q[rows, some],
        k[rows],
        v[rows],
        query_positions=positions[rows, some],
        key_lengths=lengths[rows],
        mask=Mask(),
        scale=0.2,
    )
    assert_array_equal(part, whole[rows, some])


@pytest.mark.parametrize("width", [24, 84])
def test_what_a_single_row_is_made_of_changes_no_bit(width):
    """Within one program: the norm before a product is fused with what makes two rows of one."""
    rng = np.random.default_rng(width)
    table, weights = (rng.standard_normal((45, width)).astype(np.float32) for _ in range(2))
    scale, shift = rng.standard_normal((2, width)).astype(np.float32)

    @jax.jit
    def product(tokens, table, weights, scale, shift):
        return rows_product(layer_norm(table[tokens], scale, shift, 1e-5), weights)

    tokens = np.arange(33, dtype=np.int32)
    whole = product(tokens, table, weights, scale, shift)
    for i in range(len(tokens)):
        alone = product(tokens[i : i + 1], table, weights, scale, shift)
        np.testing.assert_array_equal(alone[0], whole[i])


def test_repeated_rows():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis in range(3):
        assert_array_equal(repeated(jnp.asarray(x), 3, axis), np.concatenate([x] * 3, axis))
