"""The sets that filters keep, against their definitions by sorting in f64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rfjax.ops import filters

pytestmark = pytest.mark.quick_compile

V = 12

TOP_P = [1e-6, 0.01, 0.3, 0.5, 0.9, 0.99, 1.0]


@functools.partial(jax.jit, static_argnames="name")
def kept_by(name, logits, value, kept):
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    args = {
        "min_p": (scaled, kept),
        "top_k": (logits, kept),
        "typical": (scaled, kept),
        "top_p": (logits, scaled, kept),
    }[name]
    return getattr(filters, f"keep_{name}")(*args, value)


def found(name, logits, value, kept):
    dtype = np.int32 if name == "top_k" else np.float32
    return np.asarray(kept_by(name, logits, np.asarray(value, dtype), kept))


def shares_of(logits, kept):
    weights = np.where(kept, np.exp(logits.astype(np.float64) - logits.max()), 0)
    return weights / weights.sum()


def expected_min_p(logits, kept, min_p):
    likelihood = np.exp(logits.astype(np.float64) - logits.max())
    assume(min_p in (0, 1) or np.all(np.abs(likelihood / min_p - 1) > 1e-5))
    return kept & (likelihood >= min_p)


def expected_top_k(logits, kept, top_k):
    ranked = np.sort(logits[kept])[::-1]
    if not 0 < top_k < ranked.size:
        return kept
    return kept & (logits >= ranked[top_k - 1])


def nearest_with(share, distance, kept, wanted):
    """Whole groups of ties, the nearest first, until they have that share."""
    chosen = np.zeros_like(kept)
    for value in np.unique(distance[kept]):
        have = share[chosen].sum()
        assume(abs(have - wanted) > 1e-6)
        if have >= wanted:
            break
        chosen |= kept & (distance == value)
    return chosen


def expected_top_p(logits, kept, top_p):
    return kept if top_p >= 1 else nearest_with(shares_of(logits, kept), -logits, kept, top_p)


def expected_typical(logits, kept, typical_p):
    if typical_p >= 1:
        return kept
    share = shares_of(logits, kept)
    surprise = np.where(kept, -np.log(np.where(kept, share, 1)), np.inf)
    distance = np.abs(surprise - (share[kept] * surprise[kept]).sum())
    apart = np.diff(np.unique(np.round(distance[kept], 12))).min(initial=1.0)
    assume(apart > 1e-5)  # otherwise rounding orders them
    return nearest_with(share, np.round(distance, 12), kept, typical_p)


EXPECTED = {
    "min_p": (expected_min_p, [0.0, 0.03, 0.11, 0.6, 1.0]),
    "top_k": (expected_top_k, [-1, 0, 1, 3, V - 1, V, V + 5]),
    "top_p": (expected_top_p, TOP_P),
    "typical": (expected_typical, TOP_P),
}


@pytest.mark.parametrize("name", EXPECTED)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_filter_keeps_the_set_of_its_definition(name, data):
    """Quarter steps make ties frequent; what earlier filters left out stays out."""
    quarters = data.draw(st.lists(st.integers(-12, 12), min_size=V, max_size=V))
    mask = data.draw(st.lists(st.booleans(), min_size=V, max_size=V))
    definition, values = EXPECTED[name]
    value = data.draw(st.sampled_from(values))
    logits = np.array(quarters, np.float32) / 4
    kept = np.array(mask) | (logits == logits.max())
    expected = definition(logits, kept, value)
    assert_array_equal(found(name, logits[None], [value], kept[None])[0], expected)
    assert expected.any()


def test_a_large_vocabulary_with_a_long_tail():
    """100000 tokens of 1e-6 each beside a few: what f32 sums would lose is counted."""
    vocab = 100_010
    logits = np.full((1, vocab), np.log(1e-6), np.float32)
    logits[0, :10] = np.log(0.09)
    everything = np.ones((1, vocab), bool)
    assert found("top_p", logits, [0.899], everything).sum() == 10
    assert found("top_p", logits, [0.95], everything).all()  # the tail ties
    sloped = logits - np.arange(vocab, dtype=np.float32) * 1e-5
    share = shares_of(sloped[0], everything[0])
    for top_p in (0.5, 0.95, 0.999):
        exact = np.searchsorted(np.cumsum(share), top_p) + 1
        assert abs(found("top_p", sloped, [top_p], everything).sum() - exact) <= 2 + 1e-4 * exact


def test_top_k_of_a_flat_distribution_leaves_top_p_something_to_renormalise():
    vocab = 50_000
    logits = np.arange(vocab, dtype=np.float32)[None] * 1e-6
    kept = found("top_k", logits, [10], np.ones((1, vocab), bool))
    assert_array_equal(np.flatnonzero(kept[0]), np.arange(vocab - 10, vocab))
    assert_array_equal(
        np.flatnonzero(found("top_p", logits, [0.45], kept)[0]), np.arange(vocab - 5, vocab)
    )
