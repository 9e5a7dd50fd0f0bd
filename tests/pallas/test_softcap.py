"""Soft caps, interpreted, against NumPy's tanh in f64."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.pallas.softcap import softcapped


@pytest.mark.parametrize("cap", [0.5, 30.0, 50.0])
def test_within_a_millionth_of_the_cap(cap):
    scores = np.concatenate([np.linspace(-400, 400, 4001), 10.0 ** np.arange(-8, 9)])
    found = softcapped(jnp.asarray(scores, jnp.float32), 0.25, cap, "interpret")
    expected = cap * np.tanh(0.25 * scores.astype(np.float32).astype(np.float64) / cap)
    assert_allclose(found, expected, rtol=0, atol=4e-7 * cap)


def test_what_is_not_finite():
    found = softcapped(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), 1.0, 2.0, "interpret")
    assert_array_equal(found, [2.0, -2.0, np.nan])
