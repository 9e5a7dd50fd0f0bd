"""Attention against a loop over queries in NumPy f64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support.attention_reference import attention_reference

from rfjax.errors import UnsupportedError
from rfjax.ops import attention as attention_module
from rfjax.ops.attention import attention
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms

pytestmark = pytest.mark.quick_compile

MASKS = (Mask(), Mask("bidirectional"), Mask("window", 5), Mask("chunked", 4))

jitted = jax.jit(attention, static_argnames=("mask", "scale", "keys_are_queries"))


def draw(seed, batch, length, n_heads, n_kv, n_keys, size):
    """q [B, L, N, H], k [B, K, S, H], v [B, K, H, S]."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((batch, length, n_heads, size), np.float32) * 2
    k = rng.standard_normal((batch, n_kv, n_keys, size), np.float32)
    v = rng.standard_normal((batch, n_kv, size, n_keys), np.float32)
    return q, k, v


def visible(mask, query, key):
    if mask.kind == "bidirectional":
        return True
    if mask.kind == "window" and query - key >= mask.size:
        return False
    if mask.kind == "chunked" and query // mask.size != key // mask.size:
        return False
    return key <= query


def reference(q, k, v, positions, lengths, mask, scale):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    batch, length, n_heads, _ = q.shape
    group = n_heads // k.shape[1]
    for b in range(batch):
        for t in range(length):
            seen = [
                s for s in range(min(k.shape[2], lengths[b])) if visible(mask, positions[b, t], s)
            ]
            if not seen:
                continue
            for n in range(n_heads):
                keys, values = k[b, n // group, seen], v[b, n // group][:, seen]
                scores = keys @ q[b, t, n] * scale
                weights = np.exp(scores - scores.max())
                out[b, t, n] = values @ (weights / weights.sum())
    return out


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
@pytest.mark.parametrize(("n_heads", "n_kv"), [(4, 4), (6, 2)])
def test_every_mask_and_grouping(mask, n_heads, n_kv):
    q, k, v = draw(n_heads, 2, 7, n_heads, n_kv, 13, 8)
    positions = np.array([[0, 1, 2, 3, 9, 11, 12], [6, 7, 8, 9, 10, 11, 12]], np.int32)
    lengths = np.array([13, 11], np.int32)
    found = jitted(q, k, v, query_positions=positions, key_lengths=lengths, mask=mask, scale=0.4)
    assert found.shape == q.shape
    assert_allclose(found, reference(q, k, v, positions, lengths, mask, 0.4), atol=2e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    mask=st.sampled_from(MASKS),
    starts=st.tuples(*[st.integers(0, 9)] * 3),
    lengths=st.tuples(*[st.integers(0, 12)] * 3),
)
def test_ragged_rows(seed, mask, starts, lengths):
    """Rows at positions of their own, with any number of real keys."""
    q, k, v = draw(seed, 3, 4, 4, 2, 12, 6)
    positions = np.array(starts, np.int32)[:, None] + np.arange(4, dtype=np.int32)
    lengths = np.array(lengths, np.int32)
    found = jitted(q, k, v, query_positions=positions, key_lengths=lengths, mask=mask, scale=0.5)
    assert_allclose(found, reference(q, k, v, positions, lengths, mask, 0.5), atol=5e-6)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
def test_a_query_without_visible_keys_gets_zeros(mask):
    q, k, v = draw(1, 2, 3, 4, 2, 8, 4)
    positions = np.array([[0, 1, 2], [0, 1, 2]], np.int32)
    lengths = np.array([0, 8], np.int32)
    found = np.asarray(
        jitted(q, k, v, query_positions=positions, key_lengths=lengths, mask=mask, scale=1.0)
    )
    assert_array_equal(found[0], np.zeros_like(found[0]))
    assert np.abs(found[1]).min() > 0


def test_padding_queries_get_zeros_and_change_nothing_else():
    q, k, v = draw(2, 1, 4, 2, 1, 6, 4)
    lengths = np.array([6], np.int32)
    real = np.array([[3, 4, 5, 2]], np.int32)
    padded = np.array([[3, 4, 5, -1]], np.int32)
    arguments = {"key_lengths": lengths, "mask": Mask(), "scale": 0.5}
    whole = np.asarray(jitted(q, k, v, query_positions=real, **arguments))
    found = np.asarray(jitted(q, k, v, query_positions=padded, **arguments))
    assert_array_equal(found[:, :3], whole[:, :3])
    assert_array_equal(found[:, 3], np.zeros_like(found[:, 3]))


def test_keys_past_the_length_do_not_count_whatever_they_hold():
    q, k, v = draw(3, 1, 2, 2, 2, 9, 4)
    positions = np.array([[7, 8]], np.int32)
    arguments = {"query_positions": positions, "mask": Mask("bidirectional"), "scale": 0.5}
    short = np.array([5], np.int32)
    clean = np.asarray(jitted(q, k, v, key_lengths=short, **arguments))
    k[:, :, 5:], v[..., 5:] = 1e6, -1e6
    assert_array_equal(jitted(q, k, v, key_lengths=short, **arguments), clean)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
def test_segments_of_a_long_row(mask):
    """From 256 queries on, each segment runs over the keys that causality leaves it."""
    length = 261
    q, k, v = draw(4, 1, length, 2, 1, length, 4)
    positions = np.arange(length, dtype=np.int32)[None]
    lengths = np.array([length - 3], np.int32)
    arguments = {"query_positions": positions, "key_lengths": lengths, "mask": mask, "scale": 0.5}
    expected = reference(q, k, v, positions, lengths, mask, 0.5)
    assert_allclose(jitted(q, k, v, **arguments), expected, atol=2e-6)
    assert_allclose(jitted(q, k, v, keys_are_queries=True, **arguments), expected, atol=2e-6)


@pytest.mark.parametrize("length", [32, 33])
def test_blocks_where_scores_would_take_too_much(monkeypatch, length):
    """Blocks of 16 queries, the last one padded, and none of them sees it."""
    q, k, v = draw(8, 2, length, 2, 1, 40, 4)
    positions = np.stack([np.arange(length), np.arange(40 - length, 40)]).astype(np.int32)
    lengths = np.array([40, 37], np.int32)
    expected = reference(q, k, v, positions, lengths, Mask("window", 9), 0.5)
    monkeypatch.setattr(attention_module, "_MAX_SCORES", 1)
    run = functools.partial(attention, mask=Mask("window", 9), scale=0.5)
    found = jax.jit(run)(q, k, v, query_positions=positions, key_lengths=lengths)
    assert found.shape == q.shape
    assert_allclose(found, expected, atol=2e-6)


def terms_of(*names, n_heads=4):
    """Terms as strong as the scores, of every head another."""
    values = {
        "softcap": 1.5,
        "slopes": jnp.linspace(0.05, 1, n_heads, dtype=jnp.float32),
        "sinks": jnp.linspace(-2, 3, n_heads, dtype=jnp.float32),
    }
    return ScoreTerms(**{name: values[name] for name in names})


@pytest.mark.parametrize("own", [True, False], ids=["own keys", "cache"])
@pytest.mark.parametrize("names", ["softcap", "slopes", "sinks", "softcap slopes sinks"])
def test_terms(names, own):
    q, k, v = draw(11, 2, 13, 4, 2, 13, 8)
    positions = np.stack([np.arange(13), np.arange(13)]).astype(np.int32)
    positions[1, 9:] = -1
    lengths, terms = np.array([13, 9], np.int32), terms_of(*names.split())
    for mask in MASKS[::2]:
        arguments = {"query_positions": positions, "key_lengths": lengths, "mask": mask}
        found = jitted(q, k, v, **arguments, scale=0.4, terms=terms, keys_are_queries=own)
        expected = attention_reference(q, k, v, positions, lengths, mask, 0.4, terms)
        assert_allclose(found, expected, atol=2e-6)
        without = jitted(q, k, v, **arguments, scale=0.4, keys_are_queries=own)
        assert np.abs(np.asarray(without) - found).max() > 0.05


def test_terms_of_segments_and_blocks(monkeypatch):
    """Each takes the terms; distances stay absolute."""
    monkeypatch.setattr(attention_module, "_MAX_SCORES", 1)
    q, k, v = draw(12, 1, 261, 2, 1, 261, 4)
    positions, lengths = np.arange(261, dtype=np.int32)[None], np.array([261], np.int32)
    terms = terms_of("softcap", "slopes", "sinks", n_heads=2)
    run = functools.partial(attention, mask=Mask(), scale=0.5, keys_are_queries=True)
    found = jax.jit(run)(q, k, v, query_positions=positions, key_lengths=lengths, terms=terms)
    expected = attention_reference(q, k, v, positions, lengths, Mask(), 0.5, terms)
    assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("own", [True, False], ids=["own keys", "cache"])
def test_sinks_without_keys_and_no_sinks(own):
    """A query that sees no key gets zeros all the same; minus infinity takes nothing."""
    q, k, v = draw(14, 2, 4, 4, 2, 4, 8)
    positions = np.tile(np.arange(4, dtype=np.int32), (2, 1))
    lengths = np.array([0, 4], np.int32)
    arguments = {"query_positions": positions, "key_lengths": lengths, "mask": Mask(), "scale": 0.4}
    found = jitted(q, k, v, **arguments, terms=terms_of("sinks"), keys_are_queries=own)
    assert_array_equal(found[0], np.zeros_like(found[0]))
    none = ScoreTerms(sinks=jnp.full(4, -jnp.inf))
    found = jitted(q, k, v, **arguments, terms=none, keys_are_queries=own)
    assert_allclose(found, jitted(q, k, v, **arguments, keys_are_queries=own), atol=1e-7)


def test_large_scores_do_not_overflow():
    q, k, v = draw(5, 1, 3, 2, 1, 3, 4)
    positions = np.arange(3, dtype=np.int32)[None]
    lengths = np.array([3], np.int32)
    found = jitted(
        q * 1e4, k, v, query_positions=positions, key_lengths=lengths, mask=Mask(), scale=10.0
    )
    expected = reference(q * 1e4, k, v, positions, lengths, Mask(), 10.0)
    assert_allclose(found, expected, atol=1e-5)


def test_the_dtype_of_the_queries_is_kept():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(6, 1, 3, 2, 1, 3, 4))
    positions = jnp.arange(3, dtype=jnp.int32)[None]
    found = jitted(
        q,
        k,
        v,
        query_positions=positions,
        key_lengths=jnp.asarray([3], jnp.int32),
        mask=Mask(),
        scale=0.5,
    )
    assert found.dtype == jnp.bfloat16
    wide = (np.asarray(x, np.float32) for x in (q, k, v))
    expected = reference(*wide, np.asarray(positions), np.array([3]), Mask(), 0.5)
    assert_allclose(np.asarray(found, np.float32), expected, atol=0.03)


def test_who_runs_it():
    """Kernels by name only, here on the CPU; a reason not to take one is an error then."""
    q, k, v = map(jnp.asarray, draw(9, 1, 16, 2, 1, 16, 8))
    positions, lengths = jnp.arange(16, dtype=jnp.int32)[None], jnp.asarray([16], jnp.int32)

    def run(policy, q=q, scale=0.5, terms=NO_TERMS):
        return attention(
            q,
            k,
            v,
            query_positions=positions,
            key_lengths=lengths,
            mask=Mask(),
            scale=scale,
            terms=terms,
            policy=policy,
        )

    pallas = KernelPolicy("pallas")
    for policy in (None, DEFAULT_POLICY, KernelPolicy("xla")):
        assert "pallas_call" not in str(jax.make_jaxpr(lambda p=policy: run(p))())
    assert "pallas_call" in str(jax.make_jaxpr(lambda: run(pallas))())
    assert_allclose(run(pallas), run(None), atol=2e-6)
    terms = terms_of("softcap", "slopes", "sinks", n_heads=2)
    assert_allclose(run(pallas, terms=terms), run(None, terms=terms), atol=2e-6)
    with pytest.raises(UnsupportedError, match=r"prefill_attention.*positive scales only"):
        run(pallas, scale=-1.0)
    with pytest.raises(UnsupportedError, match=r"prefill_attention.*failed"):
        run(KernelPolicy("pallas", (("prefill_attention", "failed"),)))


def test_gradients_through_the_kernel():
    """They are those of plain JAX, with respect to queries, keys, values and terms."""
    terms = terms_of("softcap", "slopes", "sinks", n_heads=2)
    arrays = (*map(jnp.asarray, draw(10, 1, 16, 2, 1, 16, 8)), terms)
    positions, lengths = jnp.arange(16, dtype=jnp.int32)[None], jnp.asarray([16], jnp.int32)

    def gradients(policy, own):
        def loss(q, k, v, terms):
            out = attention(
                q,
                k,
                v,
                query_positions=positions,
                key_lengths=lengths,
                mask=Mask(),
                scale=0.5,
                terms=terms,
                keys_are_queries=own,
                policy=policy,
            )
            return jnp.sum(out * out)

        return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays))

    plain = gradients(None, True)
    assert len(plain) == 5
    assert all(np.abs(gradient).max() > 0.1 for gradient in plain)
    for others in (gradients(KernelPolicy("pallas"), True), gradients(None, False)):
        for found, expected in zip(others, plain, strict=True):
            assert_allclose(found, expected, atol=2e-5)
