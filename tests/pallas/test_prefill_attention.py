"""The prefill kernel, interpreted, against a loop over queries in f64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.attention_reference import attention_reference

from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.pallas import prefill_attention as module
from rfjax.pallas.prefill_attention import Config, declines, heuristic, prefill_attention

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 21), Mask("chunked", 12))
SMALL = Config(16, 16, 4, 1)
TARGETS = ("cuda", "gfx9", "gfx11", "interpret")


@functools.partial(jax.jit, static_argnames=("mask", "config"))
def kernel(q, k, v, positions, lengths, *, mask=MASKS[0], config=SMALL, terms=NO_TERMS):
    return prefill_attention(
        q,
        k,
        v,
        query_positions=positions,
        key_lengths=lengths,
        mask=mask,
        scale=0.3,
        terms=terms,
        target="interpret",
        config=config,
    )


def draw(seed, batch, length, heads, n_keys, size, dtype=np.float32):
    """q [B, L, N, H], k [B, K, S, H], v [B, K, H, S]; `heads` are N and K."""
    rng = np.random.default_rng(seed)
    shapes = (
        (batch, length, heads[0], size),
        (batch, heads[1], n_keys, size),
        (batch, heads[1], size, n_keys),
    )
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def rows(starts, counts, length):
    """Contiguous positions from each start, padding after each count, and the lengths written."""
    steps = np.arange(length, dtype=np.int32)
    starts, counts = np.array(starts, np.int32)[:, None], np.array(counts, np.int32)[:, None]
    return np.where(steps < counts, starts + steps, -1), (starts + counts)[:, 0]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    starts=st.tuples(*[st.integers(0, 40)] * 2),
    counts=st.tuples(*[st.integers(0, 37)] * 2),
    beyond=st.integers(0, 3),
)
def test_ragged_rows(mask, seed, starts, counts, beyond):
    """Rows at positions of their own, padded at the end, over three blocks of keys and more."""
    arrays = draw(seed, 2, 37, (4, 2), 80, 16)
    positions, lengths = rows(starts, counts, 37)
    lengths = lengths + beyond
    found = kernel(*arrays, positions, lengths, mask=mask)
    assert_allclose(found, attention_reference(*arrays, positions, lengths, mask, 0.3), atol=5e-6)


@pytest.mark.parametrize("mask", MASKS[:2], ids=lambda mask: mask.kind)
def test_without_a_loop_for_blocks_seen_in_full(mask):
    arrays = draw(1, 2, 40, (3, 1), 64, 16)
    positions, lengths = rows((11, 24), (40, 29), 40)
    config = Config(16, 32, 4, 1, peel=False)
    found = kernel(*arrays, positions, lengths, mask=mask, config=config)
    assert_allclose(found, attention_reference(*arrays, positions, lengths, mask, 0.3), atol=5e-6)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
def test_all_terms(mask):
    """Over blocks seen in full and in part, with sinks above and below all scores."""
    arrays = draw(11, 2, 37, (6, 2), 80, 16)
    positions, lengths = rows((40, 3), (37, 20), 37)
    terms = ScoreTerms(sinks=jnp.linspace(-1, 9, 6), slopes=jnp.linspace(0.01, 1, 6), softcap=1.5)
    found = kernel(*arrays, positions, lengths, mask=mask, terms=terms)
    expected = attention_reference(*arrays, positions, lengths, mask, 0.3, terms)
    assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("term", ["sinks", "slopes", "softcap"])
def test_one_term_alone(term):
    arrays = draw(12, 1, 33, (4, 1), 49, 16)
    positions, lengths = rows((16,), (33,), 33)
    value = 2.5 if term == "softcap" else jnp.array([0.5, -0.5, 2.0, 40.0])
    terms = ScoreTerms(**{term: value})
    found = kernel(*arrays, positions, lengths, terms=terms)
    expected = attention_reference(*arrays, positions, lengths, Mask(), 0.3, terms)
    assert_allclose(found, expected, atol=5e-6)
    assert np.abs(found - kernel(*arrays, positions, lengths)).max() > 0.01


def test_distances_are_exact_far_into_a_context():
    """They are counted from the block's last query, near which all weight is."""
    q, k, v = draw(14, 1, 20, (2, 1), 1200, 16)
    positions, lengths = rows((1180,), (20,), 20)
    positions[0, [3, 11]] = positions[0, [11, 3]]
    positions[0, 15:] = -1
    terms = ScoreTerms(slopes=jnp.array([0.7, 0.004]), sinks=jnp.array([1.0, 2.0]))
    found = kernel(q, k, v, positions, lengths, terms=terms, config=Config(32, 32, 4, 1))
    expected = attention_reference(q, k, v, positions, lengths, Mask(), 0.3, terms)
    assert_allclose(found, expected, atol=5e-6)


def test_a_sink_of_minus_infinity_is_none():
    arrays = draw(13, 1, 16, (4, 2), 32, 16)
    positions, lengths = rows((9,), (16,), 16)
    found = kernel(*arrays, positions, lengths, terms=ScoreTerms(sinks=jnp.full(4, -jnp.inf)))
    assert_allclose(found, kernel(*arrays, positions, lengths), atol=1e-6)


@pytest.mark.parametrize("size", [20, 80])
def test_any_head_dim_and_any_number_of_keys(size):
    """Neither has to be a power of two, nor a multiple of anything."""
    arrays = draw(size, 1, 19, (2, 2), 45, size)
    positions, lengths = rows((26,), (19,), 19)
    found = kernel(*arrays, positions, lengths, config=Config(32, 32, 4, 1))
    assert found.shape == arrays[0].shape
    expected = attention_reference(*arrays, positions, lengths, Mask(), 0.3)
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype):
    arrays = draw(2, 1, 33, (2, 1), 33, 32, dtype)
    positions, lengths = rows((0,), (33,), 33)
    found = kernel(*arrays, positions, lengths)
    assert found.dtype == dtype
    expected = attention_reference(*arrays, positions, lengths, Mask(), 0.3)
    error = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
    assert error < (4e-3 if dtype == jnp.bfloat16 else 5e-4)


def test_queries_without_visible_keys_get_zeros():
    """Padding, a row without keys, and a window behind which the keys end."""
    arrays = draw(3, 3, 16, (2, 1), 32, 16)
    positions = np.stack([np.full(16, -1), np.arange(16), np.arange(16) + 20]).astype(np.int32)
    lengths = np.array([9, 0, 12], np.int32)
    for mask in (Mask("window", 4), Mask("chunked", 8)):
        for terms in (NO_TERMS, ScoreTerms(sinks=jnp.ones(2))):
            found = np.asarray(kernel(*arrays, positions, lengths, mask=mask, terms=terms))
            assert_array_equal(found, np.zeros_like(found))


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
def test_blocks_that_nothing_sees_are_not_visited(mask):
    """Not-a-number in them would show: it survives a weight of zero."""
    q, k, v = draw(4, 1, 16, (2, 1), 96, 16)
    positions, lengths = rows((34,), (16,), 16)
    clean = np.asarray(kernel(q, k, v, positions, lengths, mask=mask))
    first = 16 if mask.kind == "chunked" else 0  # the chunk of position 34 starts at 24
    unseen = (np.arange(96) < first) | (np.arange(96) >= 64)
    k[:, :, unseen], v[..., unseen] = np.nan, np.nan
    found = kernel(q, k, v, positions, lengths, mask=mask)
    assert_array_equal(found, clean)


def test_a_row_does_not_depend_on_the_row_beside_it():
    arrays = draw(5, 3, 20, (4, 2), 48, 16)
    positions, lengths = rows((3, 28, 0), (20, 20, 7), 20)
    whole = np.asarray(kernel(*arrays, positions, lengths))
    alone = kernel(*(x[1:2] for x in arrays), positions[1:2], lengths[1:2])
    assert_array_equal(alone, whole[1:2])


def test_large_scores_do_not_overflow():
    q, k, v = draw(6, 1, 16, (1, 1), 16, 16)
    positions, lengths = rows((0,), (16,), 16)
    found = kernel(q * 1e5, k, v, positions, lengths)
    expected = attention_reference(q * 1e5, k, v, positions, lengths, Mask(), 0.3)
    assert_allclose(found, expected, atol=1e-5)


def test_vmap():
    arrays = [np.stack([x, x + np.float32(1)]) for x in draw(7, 1, 16, (2, 1), 16, 16)]
    positions, lengths = rows((0,), (16,), 16)
    found = jax.vmap(lambda q, k, v: kernel(q, k, v, positions, lengths))(*arrays)
    for i in range(2):
        assert_array_equal(found[i], kernel(*(x[i] for x in arrays), positions, lengths))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 5000),
    n_keys=st.integers(1, 5000),
    head_dim=st.integers(1, 256),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)
def test_the_heuristic_answers_for_every_shape(target, length, n_keys, head_dim, dtype):
    shape = length, n_keys, head_dim, jnp.dtype(dtype), target
    config = heuristic(*shape)
    for one in (config, heuristic(*shape, sized=True), heuristic(*shape, sloped=True)):
        assert one.block_q & (one.block_q - 1) == 0 == one.block_k & (one.block_k - 1)
        assert min(one.block_q, one.block_k) >= 16
    space = module.tuning_space(*shape)
    assert space[0] == config
    assert len(set(space)) == len(space)


def test_what_it_declines():
    q, k, v = draw(8, 1, 2, (1, 1), 2, 8)
    narrow = (q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), v.astype(jnp.bfloat16))
    assert declines(q, k, v, 1.0, "interpret") is None
    assert declines(q, k, v, 1.0, "gfx9") is None
    for target in TARGETS:
        assert declines(*narrow, 1.0, target) is None
    for target in ("cuda", "gfx11"):
        assert "f32" in (declines(q, k, v, 1.0, target) or "")
    assert "dtypes" in (declines(narrow[0], k, v, 1.0, "gfx9") or "")
    assert "int32" in (declines(*(x.astype(jnp.int32) for x in narrow), 1.0, "gfx9") or "")
    assert "positive" in (declines(q, k, v, 0.0, "gfx9") or "")
    assert "256" in (declines(*draw(9, 1, 2, (1, 1), 2, 257), 1.0, "gfx9") or "")
