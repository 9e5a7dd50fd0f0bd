"""What users' programs are, to the last bit: a row alone and among others, and nothing copied."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.sampling_state import state

from rfjax.ops import filters
from rfjax.ops.penalties import IN_PROMPT, counted
from rfjax.ops.sampling import sample

step = jax.jit(functools.partial(sample, n_top=20))


def mixture(n, vocab):
    """Rows with everything and rows with nothing, so that alone they take other branches."""
    rng = np.random.default_rng(vocab)
    some = lambda *values: rng.choice(np.array(values), n)  # noqa: E731
    sampling = state(
        n,
        vocab,
        temperature=some(0, 0.7, 1.0, 1.7),
        top_k=some(0, -1, 5, 40),
        top_p=some(1, 1, 0.9, 0.5),
        min_p=some(0, 0, 0.05),
        typical_p=some(1, 1, 0.9, 0.3),
        repetition_penalty=some(1, 1, 1.1, 0.9),
        presence_penalty=some(0, 0.3),
        frequency_penalty=some(0, 0.7),
        seed=np.arange(n) * 7,
        n_logprobs=some(-1, 0, 5, 20),
        bias={1: 0.5, 3: -0.25},
        stop_ids=[0, 2],
        min_length=some(0, 1000),
    )
    biased = np.array(sampling.bias_ids)
    biased[::2] = -1
    allowed = np.array(sampling.allowed)
    allowed[1::3] = rng.integers(0, 2**32, allowed[1::3].shape, np.uint32) | 2
    sampling = dataclasses.replace(
        sampling, bias_ids=jnp.asarray(biased), allowed=jnp.asarray(allowed)
    )
    counts = rng.integers(0, 3, (n, vocab)) + IN_PROMPT * rng.integers(0, 2, (n, vocab))
    logits = (rng.standard_normal((n, vocab)) * 3).astype(np.float32)
    return logits, sampling, counts.astype(np.int32)


@pytest.mark.parametrize(("vocab", "sizes"), [(12, (1, 3)), (5000, (1,))])
def test_a_row_is_the_same_bit_for_bit_whatever_is_beside_it(vocab, sizes):
    """Alone, in other numbers, in another order: alone, most rows take fewer branches."""
    n = 16
    logits, sampling, counts = mixture(n, vocab)
    at = np.arange(100, 100 + n, dtype=np.int32)
    counts = jnp.asarray(counts)

    def rows(order):
        part = jax.tree.map(lambda column: column[order], sampling)
        return step(logits[order], part, counts, order.astype(np.int32), at[order])

    together = jax.tree.map(np.asarray, rows(np.arange(n)))
    assert not together.failed.any()
    orders = [np.random.default_rng(0).permutation(n)]
    orders += [np.arange(i, i + size) for size in sizes for i in range(0, n - size, size)]
    for order in orders:
        for part, whole in zip(
            jax.tree.leaves(rows(order)), jax.tree.leaves(together), strict=True
        ):
            assert_array_equal(part, whole[order])


def test_counts_are_updated_in_place_in_a_loop():
    """The array of all slots is carried through the loop and its conditions without a copy."""
    slots, batch, vocab = 8, 2, 1000

    @functools.partial(jax.jit, donate_argnames="counts")
    def burst(logits, sampling, counts, at):
        rows = jnp.arange(batch, dtype=jnp.int32)

        def one(i, carry):
            counts, _ = carry
            found = sample(logits, sampling, counts, rows, at + i, n_top=20)
            return counted(counts, rows, found.token_ids, ~found.failed), found.token_ids

        return jax.lax.fori_loop(0, 3, one, (counts, rows))

    args = (
        np.random.default_rng(1).standard_normal((batch, vocab), np.float32),
        state(batch, vocab, temperature=0.0, frequency_penalty=2.0),
        jnp.zeros((slots, vocab), jnp.int32),
        jnp.arange(batch, dtype=jnp.int32),
    )
    text = burst.lower(*args).compile().as_text()
    assert text is not None
    assert f"s32[{slots},{vocab}]" in text
    assert not [line for line in text.splitlines() if f"s32[{slots},{vocab}]{{1,0}} copy(" in line]
    counts, _ = burst(*args)
    assert_array_equal(np.asarray(counts).sum(axis=1), [3, 3] + [0] * 6)


@jax.jit
def all_kept(logits, kept, values):
    """The sets of all filters, each by itself, and the masses that they sum."""
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    return (
        filters.keep_min_p(scaled, kept, values["min_p"]),
        filters.keep_top_k(logits, kept, values["top_k"]),
        filters.keep_typical(scaled, kept, values["typical"]),
        filters.keep_top_p(logits, scaled, kept, values["top_p"]),
        filters._mass(filters._likelihood(scaled)),
    )


@pytest.mark.parametrize("vocab", [12, 5000])
def test_a_row_is_filtered_alike_alone_and_among_others(vocab):
    n = 9
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal((n, vocab)) * 2).astype(np.float32)
    kept = (rng.random((n, vocab)) < 0.7) | (logits == logits.max(axis=1, keepdims=True))
    values = {
        "min_p": rng.choice([0, 0.03, 0.6], n).astype(np.float32),
        "top_k": rng.choice([0, 1, 3, vocab], n).astype(np.int32),
        "typical": rng.choice([0.01, 0.5, 0.9, 1], n).astype(np.float32),
        "top_p": rng.choice([0.01, 0.5, 0.9, 1], n).astype(np.float32),
    }
    together = [np.asarray(part) for part in all_kept(logits, kept, values)]
    assert np.all(np.abs(together[-1].sum(axis=1, dtype=np.int64) - 2**30) < vocab + 2**10)
    for i in range(n):
        row = slice(i, i + 1)
        alone = all_kept(logits[row], kept[row], {k: v[row] for k, v in values.items()})
        for part, expected in zip(alone, together, strict=True):
            assert_array_equal(part, expected[row])
