"""Cutoffs without sorting are those of sorting, to the last tie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rfjax.ops.cutoff import _greatest_cutoff, above_cutoff, order_of

pytestmark = pytest.mark.quick_compile

B, V = 4, 9

kept = jax.jit(above_cutoff)
searches = {
    bits: jax.jit(functools.partial(_greatest_cutoff, bits_at_once=bits)) for bits in (1, 2, 4)
}


def sorted_set(order, weight, target):
    """One row's set by its definition: whole groups of ties until the weight is there."""
    found = np.zeros(order.size, bool)
    for value in sorted(set(order.tolist()), reverse=True):
        if weight[found].sum() >= target:
            break
        found |= order == value
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    order=st.lists(
        st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1)),
        min_size=B * V,
        max_size=B * V,
    ),
    weight=st.lists(
        st.one_of(st.integers(0, 2), st.integers(0, (2**31 - 1) // V)),
        min_size=B * V,
        max_size=B * V,
    ),
    target=st.lists(
        st.one_of(st.integers(1, 12), st.integers(1, 2**31 - 1)), min_size=B, max_size=B
    ),
)
def test_the_set_is_that_of_sorting(order, weight, target):
    order = np.array(order, np.int32).reshape(B, V)
    weight = np.array(weight, np.int32).reshape(B, V)
    target = np.array(target, np.int32)
    expected = [sorted_set(*row) for row in zip(order, weight, target, strict=True)]
    reached = weight.sum(axis=1) >= target
    found = np.asarray(kept(order, weight, target))
    assert_array_equal(found[reached], np.array(expected)[reached])
    assert found[~reached].all()


def test_any_number_of_bits_at_once_finds_the_same_cutoff():
    rng = np.random.default_rng(0)
    order = rng.integers(-(2**31), 2**31, (64, 50)).astype(np.int32)
    weight = rng.integers(0, 1000, (64, 50)).astype(np.int32)
    target = rng.integers(1, 26_000, 64).astype(np.int32)
    one = np.asarray(searches[1](order, weight, target))
    assert_array_equal(searches[2](order, weight, target), one)
    assert_array_equal(searches[4](order, weight, target), one)


def test_order_is_that_of_floats():
    rng = np.random.default_rng(1)
    tiny = np.finfo(np.float32).tiny
    x = np.concatenate(
        [
            rng.standard_normal(500).astype(np.float32) * 10.0 ** rng.integers(-30, 30, 500),
            [-np.inf, np.inf, 0.0, -0.0, tiny, -tiny, 1.0, np.nextafter(np.float32(1), 2)],
        ]
    ).astype(np.float32)
    order = np.asarray(jax.jit(order_of)(jnp.asarray(x[None])))[0]
    assert_array_equal(order[:, None] < order, x[:, None] < x)
    assert_array_equal(order[:, None] == order, x[:, None] == x)
