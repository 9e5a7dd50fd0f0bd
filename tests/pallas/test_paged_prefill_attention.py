"""The prefill kernel over pages, interpreted, against a loop over queries in f64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.attention_reference import visible
from support.paged_reference import dequantized, paged_attention_reference, random_table

from rfjax.cache.paged import quantize_heads
from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas.paged_prefill_attention import declines, paged_prefill_attention
from rfjax.pallas.paged_prefill_config import Config

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 21), Mask("chunked", 12))
TARGETS = ("cuda", "gfx9", "gfx11", "interpret")
SCALE = 0.3
PAGE, MAX_PAGES, N_PAGES = 16, 6, 20


@functools.partial(jax.jit, static_argnames=("mask", "config"))
def kernel(q, k, v, table, positions, lengths, mask, config, terms=NO_TERMS, scales=(None, None)):
    return paged_prefill_attention(
        q,
        k,
        v,
        table,
        query_positions=positions,
        key_lengths=lengths,
        mask=mask,
        scale=SCALE,
        terms=terms,
        k_scale=scales[0],
        v_scale=scales[1],
        target="interpret",
        config=config,
    )


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def draw(seed, batch=2, length=19, heads=(4, 2), size=16, page=PAGE, dtype=np.float32):
    """q [B, L, N, H], pages [P, K, C, H] of keys and of values, and a table."""
    rng = np.random.default_rng(seed)
    n_pages, max_pages = N_PAGES * PAGE // page, MAX_PAGES * PAGE // page
    q = normal(rng, batch, length, heads[0], size, dtype=dtype)
    k, v = (normal(rng, n_pages, heads[1], page, size, dtype=dtype) for _ in range(2))
    return q, k, v, random_table(rng, batch, max_pages, n_pages)


def rows(starts, counts, length):
    """Contiguous positions from each start, padding after each count, and the lengths written."""
    steps = np.arange(length, dtype=np.int32)
    starts, counts = np.array(starts, np.int32)[:, None], np.array(counts, np.int32)[:, None]
    return np.where(steps < counts, starts + steps, -1), (starts + counts)[:, 0]


def poisoned(pages, table, positions, lengths, mask):
    """Pages with NaN wherever no query of a row looks."""
    pages = np.array(pages)
    size = pages.shape[2]
    needed = np.zeros((pages.shape[0], size), bool)
    for row, queries, length in zip(table, positions, lengths, strict=True):
        for key in range(min(int(length), len(row) * size)):
            seen = any(visible(mask, int(query), key) for query in queries if query >= 0)
            needed[row[key // size], key % size] |= seen
    pages[~np.broadcast_to(needed[:, None], pages.shape[:3])] = np.nan
    return pages


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    starts=st.tuples(*[st.integers(0, 70)] * 2),
    counts=st.tuples(*[st.integers(0, 19)] * 2),
    wide=st.booleans(),
    beyond=st.integers(0, 3),
)
def test_ragged_rows_over_random_tables(mask, seed, starts, counts, wide, beyond):
    """Nothing shows of what is in pages of others, past the length, or behind all windows.

    A block of keys is a page, or several pages.
    """
    q, k, v, table = draw(seed)
    positions, lengths = rows(starts, counts, 19)
    lengths = lengths + beyond
    expected = paged_attention_reference(q, k, v, table, positions, lengths, mask, SCALE)
    k, v = (poisoned(pages, table, positions, lengths, mask) for pages in (k, v))
    config = Config(32, 32, 4, 1) if wide else Config(16, 16, 4, 1)
    found = kernel(q, k, v, table, positions, lengths, mask, config)
    assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("mask", MASKS[::2], ids=lambda mask: mask.kind)
def test_blocks_smaller_than_a_page(mask):
    q, k, v, table = draw(1, page=32)
    positions, lengths = rows((50, 3), (19, 11), 19)
    expected = paged_attention_reference(q, k, v, table, positions, lengths, mask, SCALE)
    k, v = (poisoned(pages, table, positions, lengths, mask) for pages in (k, v))
    found = kernel(q, k, v, table, positions, lengths, mask, Config(16, 16, 4, 1))
    assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (5, 1)], ids=str)
def test_any_number_of_heads(heads):
    """A block holds all of a group's heads for some tokens, and begins within a token's."""
    q, k, v, table = draw(2, heads=heads)
    positions, lengths = rows((41, 0), (19, 7), 19)
    terms = ScoreTerms(
        sinks=jnp.linspace(-1, 2, heads[0]), slopes=jnp.linspace(0.1, 1, heads[0]), softcap=1.5
    )
    found = kernel(q, k, v, table, positions, lengths, Mask(), Config(16, 16, 4, 1), terms)
    expected = paged_attention_reference(q, k, v, table, positions, lengths, Mask(), SCALE, terms)
    assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("term", ["sinks", "slopes", "softcap"])
def test_one_term_alone(term):
    q, k, v, table = draw(3)
    positions, lengths = rows((60, 0), (19, 3), 19)
    value = 2.5 if term == "softcap" else jnp.array([0.5, -3.0, 2.0, 40.0])
    terms = ScoreTerms(**{term: value})
    arguments = q, k, v, table, positions, lengths, Mask("window", 30)
    found = kernel(*arguments, Config(32, 32, 4, 1), terms)
    assert_allclose(found, paged_attention_reference(*arguments, SCALE, terms), atol=5e-6)


def test_a_sink_of_minus_infinity_is_none():
    q, k, v, table = draw(4)
    positions, lengths = rows((30, 2), (19, 5), 19)
    arguments = q, k, v, table, positions, lengths, Mask(), Config(16, 16, 4, 1)
    found = kernel(*arguments, ScoreTerms(sinks=jnp.full(4, -jnp.inf)))
    assert_allclose(found, kernel(*arguments), atol=1e-6)


@pytest.mark.parametrize("size", [20, 80, 96])
def test_any_head_dim(size):
    q, k, v, table = draw(size, length=5, heads=(2, 1), size=size)
    positions, lengths = rows((26, 0), (5, 5), 5)
    found = kernel(q, k, v, table, positions, lengths, Mask(), Config(16, 32, 4, 1))
    expected = paged_attention_reference(q, k, v, table, positions, lengths, Mask(), SCALE)
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_pages_of_8_bits(dtype):
    """With scales that are not numbers where nobody looks."""
    q, k, v, table = draw(5, dtype=dtype)
    positions, lengths = rows((40, 0), (19, 15), 19)
    mask = Mask("window", 30)
    (k, k_scale), (v, v_scale) = (quantize_heads(jnp.asarray(pages)) for pages in (k, v))
    expected = paged_attention_reference(
        q,
        dequantized(k, k_scale),
        dequantized(v, v_scale),
        table,
        positions,
        lengths,
        mask,
        SCALE,
    )
    scales = tuple(
        poisoned(np.asarray(scale)[..., None], table, positions, lengths, mask)[..., 0]
        for scale in (k_scale, v_scale)
    )
    found = kernel(q, k, v, table, positions, lengths, mask, Config(16, 16, 4, 1), NO_TERMS, scales)
    assert found.dtype == dtype
    assert error_of(found, expected) < (1e-6 if dtype == jnp.float32 else 4e-3)


@pytest.mark.parametrize(
    ("dtype", "page_dtype", "limit"),
    [
        (jnp.bfloat16, jnp.bfloat16, 4e-3),
        (jnp.float16, jnp.float16, 5e-4),
        (jnp.bfloat16, jnp.float16, 6e-3),  # keys and values are rounded to the queries' dtype
        (jnp.float32, jnp.bfloat16, 1e-6),
    ],
)
def test_narrow_dtypes(dtype, page_dtype, limit):
    q, k, v, table = draw(6, size=32)
    q, k, v = q.astype(dtype), k.astype(page_dtype), v.astype(page_dtype)
    positions, lengths = rows((33, 0), (19, 19), 19)
    found = kernel(q, k, v, table, positions, lengths, Mask(), Config(16, 16, 4, 1))
    assert found.dtype == dtype
    expected = paged_attention_reference(q, k, v, table, positions, lengths, Mask(), SCALE)
    assert error_of(found, expected) < limit


def error_of(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def test_pieces_of_one_sequence_are_the_whole():
    """Rows with one table and positions that follow each other, beside another sequence's."""
    q, k, v, table = draw(7, batch=2, length=32)
    positions, lengths = rows((48, 20), (32, 32), 32)
    config = Config(16, 16, 4, 1)
    whole = np.asarray(kernel(q, k, v, table, positions, lengths, Mask(), config))
    pieces = kernel(
        np.concatenate([q[:1, :16], q[:1, 16:], q[1:, :16]]),
        k,
        v,
        table[[0, 0, 1]],
        np.stack([positions[0, :16], positions[0, 16:], positions[1, :16]]),
        lengths[[0, 0, 1]],
        Mask(),
        config,
    )
    assert_array_equal(pieces[:2].reshape(1, 32, 4, 16), whole[:1])
    assert_array_equal(pieces[2], whole[1, :16])


def test_queries_without_visible_keys_get_zeros():
    """Padding, a row without keys, and a window behind which the keys end; with sinks or not."""
    q, k, v, table = draw(8, batch=3, length=16)
    positions = np.stack([np.full(16, -1), np.arange(16), np.arange(16) + 20]).astype(np.int32)
    lengths = np.array([9, 0, 12], np.int32)
    for terms in (NO_TERMS, ScoreTerms(sinks=jnp.ones(4))):
        found = kernel(
            q, k, v, table, positions, lengths, Mask("window", 4), Config(32, 32, 4, 1), terms
        )
        assert_array_equal(found, np.zeros_like(found))


@pytest.mark.parametrize("where", ["query", "key"])
def test_nan_shows_where_it_is_seen(where):
    q, k, v, table = draw(9, batch=1, length=16, heads=(2, 1))
    (q[0, 5] if where == "query" else k[table[0, 0], 0, 5])[...] = np.nan
    positions, lengths = rows((0,), (16,), 16)
    found = kernel(q, k, v, table, positions, lengths, Mask("window", 4), Config(16, 16, 4, 1))
    seen = np.isnan(np.asarray(found)).all(axis=(0, 2, 3))
    reached = {5} if where == "query" else {5, 6, 7, 8}
    assert set(np.flatnonzero(seen)) == reached
    assert np.isfinite(np.asarray(found)[:, sorted(set(range(16)) - reached)]).all()


@pytest.mark.parametrize("factor", [1e5, 1e-5])
def test_scores_of_any_size(factor):
    q, k, v, table = draw(10)
    positions, lengths = rows((20, 0), (19, 19), 19)
    arguments = q * np.float32(factor), k, v, table, positions, lengths, Mask()
    found = kernel(*arguments, Config(16, 16, 4, 1))
    assert_allclose(found, paged_attention_reference(*arguments, SCALE), atol=1e-5)


def test_what_it_declines():
    q, k, v, _ = draw(11, batch=1, length=2)
    narrow = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    packed = k.astype(jnp.int8)
    assert declines(q, k, v, 1.0, "interpret") is None
    assert declines(q, k, v, 1.0, "gfx9") is None
    for target in TARGETS:
        assert declines(*narrow, 1.0, target) is None
        assert declines(narrow[0], packed, packed, 1.0, target) is None
    for target in ("cuda", "gfx11"):
        assert "f32" in (declines(q, k, v, 1.0, target) or "")
    assert "dtypes" in (declines(q, narrow[1], v, 1.0, "gfx9") or "")
    assert "queries" in (declines(packed, k, v, 1.0, "gfx9") or "")
    assert "int32" in (declines(q, *(x.astype(jnp.int32) for x in (k, v)), 1.0, "gfx9") or "")
    assert "positive" in (declines(q, k, v, 0.0, "gfx9") or "")
    large = jax.ShapeDtypeStruct((2, 1, 16, 257), jnp.float32)
    assert "256" in (declines(q, large, large, 1.0, "gfx9") or "")
    odd = jax.ShapeDtypeStruct((2, 1, 24, 16), jnp.float32)
    assert "24" in (declines(q, odd, odd, 1.0, "gfx9") or "")
    huge = jax.ShapeDtypeStruct((3 << 17, 8, 16, 64), jnp.int8)
    assert "GiB" in (declines(q, huge, huge, 1.0, "gfx9") or "")
