"""What users forbid and favour, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.constraints import add_bias, allow, n_words, withhold


def words_of(mask):
    """Bits in the order that `allow` documents, by arithmetic of its own."""
    words = np.zeros((mask.shape[0], n_words(mask.shape[1])), np.uint64)
    for row, token in zip(*np.nonzero(mask), strict=True):
        words[row, token // 32] += np.uint64(2) ** np.uint64(token % 32)
    return words.astype(np.uint32)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100])
def test_only_tokens_whose_bit_is_set_stay(vocab):
    rng = np.random.default_rng(vocab)
    mask = rng.random((3, vocab)) < 0.5
    logits = rng.standard_normal((3, vocab)).astype(np.float32)
    found = jax.jit(allow)(logits, words_of(mask))
    assert_array_equal(found, np.where(mask, logits, -np.inf))


def test_biases_are_added_and_padding_is_not():
    logits = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids = np.array([[3, 0, -1], [-1, -1, -1]], np.int32)
    values = np.array([[-1.5, 2.0, 99.0], [99.0, 99.0, 99.0]], np.float32)
    found = jax.jit(add_bias)(logits, ids, values)
    assert_allclose(found, [[2, 1, 2, 1.5], [4, 5, 6, 7]])


def test_ids_are_withheld_in_rows_that_wait():
    logits = np.zeros((3, 4), np.float32)
    ids = np.array([[1, 3], [1, 3], [-1, 2]], np.int32)
    found = jax.jit(withhold)(logits, ids, jnp.array([True, False, True]))
    inf = np.inf
    assert_array_equal(found, [[0, -inf, 0, -inf], [0, 0, 0, 0], [0, 0, -inf, 0]])
