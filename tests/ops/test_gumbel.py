"""The noise of draws: its distribution, its ends, and what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rfjax.ops.gumbel import gumbel

noise = jax.jit(gumbel, static_argnames="vocab")


def seeds(*values):
    return jnp.array(values, jnp.uint32)


def test_the_distribution_is_gumbels():
    """Kolmogorov-Smirnov over 400000 numbers, at a level of 1e-5 (2.4 over the root of n)."""
    at = jnp.arange(100, dtype=jnp.int32)
    x = np.sort(np.asarray(noise(jnp.full(100, 3, jnp.uint32), at, vocab=4000)).ravel())
    expected = np.exp(-np.exp(-x.astype(np.float64)))
    ranks = np.arange(x.size)
    apart = np.maximum(expected - ranks / x.size, (ranks + 1) / x.size - expected).max()
    assert apart < 2.4 / np.sqrt(x.size)


@pytest.mark.parametrize(("bits", "least", "most"), [(0, 22.0, 22.3), (2**32 - 1, -2.9, -2.7)])
def test_its_ends_are_finite(monkeypatch, bits, least, most):
    monkeypatch.setattr(
        jax.random, "bits", lambda key, shape, dtype: jnp.full(shape, bits, jnp.uint32)
    )
    x = gumbel(seeds(0), jnp.zeros(1, jnp.int32), 3)
    assert ((x > least) & (x < most)).all()


def test_a_row_depends_on_its_seed_and_position_alone():
    vocab = 37
    at = jnp.array([5, 6, 5, 9], jnp.int32)
    x = np.asarray(noise(seeds(1, 1, 2**32 - 1, 0), at, vocab=vocab))
    assert len({row.tobytes() for row in x}) == 4
    for i, seed in enumerate([1, 1, 2**32 - 1, 0]):
        assert_array_equal(noise(seeds(seed), at[i : i + 1], vocab=vocab)[0], x[i])
    assert_array_equal(noise(seeds(0, 1), at[jnp.array([3, 0])], vocab=vocab), x[[3, 0]])
