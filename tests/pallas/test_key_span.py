"""Spans of keys against a look at every pair of a query and a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from support.attention_reference import visible

from rfjax.ops.mask import Mask
from rfjax.pallas.key_span import key_span

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 21), Mask("window", 1), Mask("chunked", 12))
N_KEYS, BLOCK, QUERIES = 96, 8, 6


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.kind}-{mask.size}")
def test_spans(mask):
    """Nothing seen is left out, and the blocks without masks are seen in full."""

    @jax.jit
    def compute(positions, n_keys):
        span = key_span(mask, positions, n_keys, BLOCK)
        seen = span.sees(jnp.arange(N_KEYS, dtype=jnp.int32))
        blocks = span.first, span.whole, span.full, span.blocks
        return seen, span.any_sees(positions), span.begin, span.end, blocks

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        positions=st.lists(st.integers(-1, N_KEYS - 1), min_size=QUERIES, max_size=QUERIES),
        n_keys=st.integers(0, N_KEYS),
    )
    def check(positions, n_keys):
        expected = np.array(
            [
                [query >= 0 and key < n_keys and visible(mask, query, key) for key in range(N_KEYS)]
                for query in positions
            ]
        )
        seen, any_sees, begin, end, blocks = jax.tree.map(
            np.asarray, compute(np.array(positions, np.int32), np.int32(n_keys))
        )
        real = np.array(positions) >= 0
        assert_array_equal(seen[real], expected[real])
        assert_array_equal(any_sees, expected.any(axis=1))
        keys = np.flatnonzero(expected.any(axis=0))
        assert not keys.size or (begin <= keys[0] and keys[-1] < end)
        first, whole, full, n_blocks = blocks
        visited = range(first, n_blocks)
        assert set(keys // BLOCK) <= set(visited)
        for block in visited:
            if whole <= block < full:
                assert expected[real][:, block * BLOCK : (block + 1) * BLOCK].all()

    check()
