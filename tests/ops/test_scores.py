"""ALiBi's slopes against the published code's two cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.scores import alibi_slopes


def published(n_heads):
    """The paper's `get_slopes`, for a bias of 8: other heads are every other of twice as many."""
    if math.log2(n_heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n_heads) - 3)))
        return [start * start**i for i in range(n_heads)]
    closest = 2 ** math.floor(math.log2(n_heads))
    return published(closest) + published(2 * closest)[0::2][: n_heads - closest]


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 14, 16, 32, 40, 64, 71, 112])
def test_the_published_slopes(n_heads):
    found = alibi_slopes(n_heads, 8.0)
    assert found.dtype == np.float32
    assert_allclose(found, published(n_heads), rtol=1e-6)


def test_slopes_of_eight_heads():
    assert_array_equal(alibi_slopes(8, 8.0), [0.5**h for h in range(1, 9)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n_heads=st.integers(1, 200), max_bias=st.floats(0.5, 32))
def test_any_bias_is_a_power_of_the_published_slopes(n_heads, max_bias):
    """2^(-bias x) is (2^(-8 x))^(bias / 8); the least slope of a power of two is 2^-bias."""
    found = alibi_slopes(n_heads, max_bias)
    assert_allclose(found, np.array(published(n_heads)) ** (max_bias / 8), rtol=1e-5)
    power = 1 << (n_heads.bit_length() - 1)
    assert found[power - 1] == pytest.approx(2**-max_bias)
    assert (np.diff(found[:power]) < 0).all()
    assert (np.diff(found[power:]) < 0).all()
    assert (found > 0).all()
    assert (found < 1).all()
