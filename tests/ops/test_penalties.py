"""Counts of tokens, and the logits that penalties make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.ops.penalties import (
    IN_PROMPT,
    counted,
    counts_of_tokens,
    in_output,
    penalize,
    seen,
)

SLOTS, V = 4, 10

opened = jax.jit(counts_of_tokens)
step = jax.jit(counted)
penalized = jax.jit(penalize)


def ids(*rows):
    """Token lists as one array, padded with -1."""
    width = max(1, *(len(row) for row in rows))
    return jnp.array([[*row, *[-1] * (width - len(row))] for row in rows], jnp.int32)


def test_a_slot_opened_anew_forgets_what_was_there():
    counts = opened(
        jnp.full((SLOTS, V), 5, jnp.int32),
        jnp.array([2, 0, -1, SLOTS], jnp.int32),
        ids([1, 9, 1], [0], [3, 3], [4]),
        ids([9, 9, 2], [], [5], [6]),
    )
    found = np.asarray(counts)
    assert_array_equal(found[[1, 3]], 5)  # not named
    assert_array_equal(in_output(counts)[2], [0, 0, 1, 0, 0, 0, 0, 0, 0, 2])
    assert_array_equal(np.flatnonzero(found[2] & IN_PROMPT), [1, 9])
    assert_array_equal(np.flatnonzero(seen(counts)[2]), [1, 2, 9])
    assert_array_equal(np.flatnonzero(seen(counts)[0]), [0])
    assert not in_output(counts)[0].any()


def test_steps_count_to_what_a_preempted_sequence_starts_with():
    """Token by token, or at once from its tokens: the same counts."""
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(0, V, (2, 6)), rng.integers(0, V, (2, 8))
    rows = jnp.array([3, 1], jnp.int32)
    empty = jnp.zeros((SLOTS, V), jnp.int32)
    at_once = opened(empty, rows, ids(*prompt.tolist()), ids(*output.tolist()))
    counts = opened(empty, rows, ids(*prompt.tolist()), ids([], []))
    for tokens in output.T:
        counts = step(counts, rows, jnp.array(tokens, jnp.int32), jnp.ones(2, bool))
    assert_array_equal(counts, at_once)


def test_rows_that_rest_and_padding_count_nothing():
    counts = step(
        jnp.zeros((SLOTS, V), jnp.int32),
        jnp.array([0, 1, -1, SLOTS, 3], jnp.int32),
        jnp.full(5, 7, jnp.int32),
        jnp.array([True, False, True, True, True]),
    )
    expected = np.zeros((SLOTS, V), np.int32)
    expected[[0, 3], 7] = 1
    assert_array_equal(counts, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    repetition=st.sampled_from([0.5, 1.0, 1.1, 2.0]),
    frequency=st.sampled_from([-1.5, 0.0, 0.3]),
    presence=st.sampled_from([-0.7, 0.0, 2.0]),
)
def test_penalties_are_those_of_their_definitions(seed, repetition, frequency, presence):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((1, V)) * 3).astype(np.float32)
    times = rng.integers(0, 4, (1, V)) * rng.integers(0, 2, (1, V))
    prompt = rng.random((1, V)) < 0.4
    one = lambda value: jnp.array([value], jnp.float32)  # noqa: E731
    counts = jnp.array(times + prompt * IN_PROMPT, jnp.int32)
    found = penalized(logits, counts, one(repetition), one(frequency), one(presence))
    expected = logits.astype(np.float64)
    repeated = np.where(expected > 0, expected / repetition, expected * repetition)
    expected = np.where(prompt | (times > 0), repeated, expected)
    expected = expected - frequency * times - presence * (times > 0)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", [10, 700, 5000])
def test_a_row_is_penalized_alike_alone_and_among_others(vocab):
    rng = np.random.default_rng(vocab)
    n = 8
    logits = (rng.standard_normal((n, vocab)) * 3).astype(np.float32)
    times = rng.integers(0, 9, (n, vocab)) + IN_PROMPT * rng.integers(0, 2, (n, vocab))
    settings_ = rng.uniform(0.3, 1.7, (3, n)).astype(np.float32)
    settings_[:, 0] = [1, 0, 0]
    counts = times.astype(np.int32)
    together = np.asarray(penalized(logits, counts, *settings_))
    assert_array_equal(together[0], logits[0])
    for i in range(n):
        row = slice(i, i + 1)
        alone = penalized(logits[row], counts[row], *settings_[:, row])
        assert_array_equal(alone[0], together[i])


def test_what_is_forbidden_stays_so():
    logits = jnp.full((1, V), -jnp.inf)
    counts = jnp.full((1, V), 3 + IN_PROMPT, jnp.int32)
    one = jnp.ones(1, jnp.float32)
    assert (penalized(logits, counts, 1.3 * one, -2 * one, -2 * one) == -jnp.inf).all()
