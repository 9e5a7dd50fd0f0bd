"""Masks against loops over the definition, and the checks of their fields."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rfjax.errors import ConfigError
from rfjax.ops.mask import Mask, allowed

MASKS = st.one_of(
    st.just(Mask("causal")),
    st.just(Mask("bidirectional")),
    st.builds(Mask, st.just("window"), st.integers(1, 12)),
    st.builds(Mask, st.just("chunked"), st.integers(1, 12)),
)


def visible(mask: Mask, query: int, key: int) -> bool:
    """One pair, spelled out as sets of positions."""
    if mask.kind == "bidirectional":
        return True
    keys = set(range(query + 1))
    if mask.kind == "window":
        keys = set(range(max(0, query - mask.size + 1), query + 1))
    if mask.kind == "chunked":
        first = query
        while first % mask.size:
            first -= 1
        keys = set(range(first, query + 1))
    return key in keys


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    mask=MASKS,
    queries=st.lists(st.integers(0, 40), min_size=6, max_size=6),
    keys=st.lists(st.integers(0, 40), min_size=9, max_size=9),
)
def test_masks_match_a_loop_over_absolute_positions(mask, queries, keys):
    found = allowed(
        mask,
        jnp.asarray(queries, jnp.int32)[:, None],
        jnp.asarray(keys, jnp.int32)[None, :],
    )
    expected = [[visible(mask, q, k) for k in keys] for q in queries]
    assert_array_equal(found, expected)


def test_a_query_always_sees_itself():
    at = jnp.arange(30, dtype=jnp.int32)
    for mask in (Mask(), Mask("bidirectional"), Mask("window", 1), Mask("chunked", 7)):
        assert allowed(mask, at, at).all()


def test_masks_are_static_data():
    """Equal masks are one compiled program; another size is another."""
    traces = []

    @jax.jit
    def count(at):
        traces.append(1)
        return at

    by_mask = jax.jit(lambda at, mask: (count(at), allowed(mask, at, at)), static_argnums=1)
    at = jnp.arange(4, dtype=jnp.int32)
    by_mask(at, Mask("window", 3))
    by_mask(at, Mask("window", 3))
    assert hash(Mask("window", 3)) == hash(Mask("window", 3)) != hash(Mask("window", 4))
    assert by_mask._cache_size() == 1
    by_mask(at, Mask("window", 4))
    assert by_mask._cache_size() == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("diagonal",), "'diagonal', expected causal, bidirectional, window or chunked"),
        (("window",), "size of at least 1, got 0"),
        (("chunked", -3), "size of at least 1, got -3"),
        (("causal", 4), "takes no size, got 4"),
        (("bidirectional", 1), "takes no size, got 1"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Mask(*fields)


def test_a_bidirectional_mask_has_the_broadcast_shape():
    found = allowed(Mask("bidirectional"), jnp.zeros((3, 1)), jnp.zeros((1, 5)))
    assert found.shape == (3, 5) and found.all()
