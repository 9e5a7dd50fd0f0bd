"""Log-probabilities: NumPy's numbers, the same bits whatever rows are beside, and the best ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.logprobs import most_likely, normalizer, of_tokens, token_logprobs

best_of = jax.jit(most_likely, static_argnums=1)
scored = jax.jit(token_logprobs, static_argnums=2)


@jax.jit
def logprobs(logits, tokens):
    return of_tokens(logits, tokens, normalizer(logits))


@pytest.mark.parametrize("vocab", [7, 1000, 1024, 4099])
def test_a_tokens_logprob_is_the_same_bit_for_bit_whatever_rows_are_beside_it(vocab):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((32, vocab)) * 5).astype(np.float32)
    chosen = rng.integers(0, vocab, 32).astype(np.int32)
    together = np.asarray(logprobs(logits, chosen))
    for n_rows in (1, 2, 5, 9, 16):
        parts = [
            np.asarray(logprobs(logits[start : start + n_rows], chosen[start : start + n_rows]))
            for start in range(0, 32, n_rows)
        ]
        assert_array_equal(np.concatenate(parts), together)
    wide = logits.astype(np.float64)
    expected = wide[np.arange(32), chosen] - np.log(np.exp(wide).sum(axis=1))
    assert_allclose(together, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("vocab", [5, 128, 129, 2700, 5000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_most_likely_are_those_of_top_k(vocab, ties):
    """Around whole blocks, fewer blocks than asked for and more; of ties the lower first."""
    rng = np.random.default_rng(vocab)
    logits = rng.standard_normal((6, vocab)).astype(np.float32) * 3
    if ties:
        logits = np.round(logits * 0.7)
        logits[1] = 2.0
        logits[2, rng.random(vocab) < 0.999] = -np.inf
    tokens, values = best_of(logits, 20)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :20]
    assert_array_equal(tokens, order)
    assert_array_equal(values, np.take_along_axis(logits, order, axis=1))


def test_the_tokens_of_a_prompt_in_blocks_of_any_size():
    vocab, n_tokens = 300, 12
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((n_tokens, vocab)) * 4).astype(np.float32)
    wanted = rng.integers(0, vocab, n_tokens).astype(np.int32)
    whole = [np.asarray(part) for part in scored(logits, wanted, 5)]
    wide = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert_allclose(whole[0], wide[np.arange(n_tokens), wanted], atol=1e-5)
    assert_allclose(whole[2], -np.sort(-wide, axis=1)[:, :5], atol=1e-5)
    for size in (1, 3, 6):
        for start in range(0, n_tokens, size):
            block = slice(start, start + size)
            for part, expected in zip(scored(logits[block], wanted[block], 5), whole, strict=True):
                assert_array_equal(part, expected[block])
    assert_array_equal(scored(logits, whole[1][:, 0], 5)[0], whole[2][:, 0])


def test_no_most_likely_ones_are_none():
    logprob, tokens, values = scored(np.zeros((2, 9), np.float32), np.zeros(2, np.int32), 0)
    assert_allclose(logprob, -np.log(9), rtol=1e-6)
    assert tokens.shape == values.shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("vocab", [4, 40, 1000])
def test_one_bad_logit_shows_in_its_row_alone(bad, vocab):
    logits = np.zeros((9, vocab), np.float32)
    for row in range(8):
        logits[row, (row * 37) % vocab] = bad
    found = logprobs(logits, np.full(9, vocab - 1, np.int32))
    assert_array_equal(np.isnan(found), [True] * 8 + [False])
    assert_allclose(found[8], -np.log(vocab), rtol=1e-6)


def test_nothing_likely_is_bad_too():
    found = logprobs(jnp.full((2, 5), -jnp.inf), jnp.zeros(2, jnp.int32))
    assert np.isnan(found).all()
