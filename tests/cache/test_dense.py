"""The dense cache against a NumPy model of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rfjax.cache.dense import LayerCache, append, cache_bytes, init_cache
from rfjax.cache.kv_shape import KVShape
from rfjax.errors import UnsupportedError

B, L, K, H, CAPACITY = 3, 4, 2, 5, 7
SHAPES = (KVShape(K, H, H),)

write = jax.jit(append)


def entries(seed):
    """k and v of L tokens a row, f32 [B, L, K, H]."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, B, L, K, H), np.float32)


POSITIONS = st.lists(
    st.lists(
        st.one_of(
            st.integers(0, CAPACITY - 1), st.sampled_from([-1, -9, CAPACITY, 1000, 2**31 - 1])
        ),
        min_size=L,
        max_size=L,
        unique_by=lambda p: p if 0 <= p < CAPACITY else object(),
    ),
    min_size=B,
    max_size=B,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=st.lists(POSITIONS, min_size=1, max_size=3))
def test_append_writes_every_token_at_its_position_and_nothing_else(steps):
    cache = init_cache(SHAPES, B, CAPACITY, jnp.dtype("float32")).layers[0]
    keys = np.zeros((B, K, CAPACITY, H), np.float32)
    values = np.zeros((B, K, H, CAPACITY), np.float32)
    for seed, positions in enumerate(steps):
        k, v = entries(seed)
        before = np.asarray(cache.k), np.asarray(cache.v)
        old = cache
        cache = write(cache, k, v, np.array(positions, np.int32))
        assert_array_equal(old.k, before[0])  # the old tree is as it was
        assert_array_equal(old.v, before[1])
        for row in range(B):
            for token, at in enumerate(positions[row]):
                if 0 <= at < CAPACITY:
                    keys[row, :, at] = k[row, token]
                    values[row, :, :, at] = v[row, token]
        assert_array_equal(cache.k, keys)
        assert_array_equal(cache.v, values)


def test_padding_does_not_write_at_the_end():
    """As an index, -1 would be the last position."""
    cache = init_cache(SHAPES, B, CAPACITY, jnp.dtype("float32")).layers[0]
    k, v = entries(0)
    same = write(cache, k, v, np.full((B, L), -1, np.int32))
    assert_array_equal(same.k, cache.k)
    assert_array_equal(same.v, cache.v)


def test_a_full_row_keeps_what_it_has():
    k, v = entries(1)
    cache = LayerCache(k=jnp.ones((B, K, CAPACITY, H)), v=jnp.ones((B, K, H, CAPACITY)))
    beyond = np.arange(CAPACITY, CAPACITY + L, dtype=np.int32)
    same = write(cache, k, v, np.broadcast_to(beyond, (B, L)))
    assert_array_equal(same.k, cache.k)
    assert_array_equal(same.v, cache.v)


def test_append_casts_to_the_dtype_of_the_cache():
    cache = init_cache(SHAPES, B, CAPACITY, jnp.dtype("bfloat16")).layers[0]
    k, v = entries(2)
    positions = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    written = write(cache, k, v, positions)
    assert written.k.dtype == written.v.dtype == jnp.bfloat16
    expected = jnp.asarray(k).astype(jnp.bfloat16).transpose(0, 2, 1, 3)
    assert_array_equal(
        np.asarray(written.k[:, :, :L], np.float32), np.asarray(expected, np.float32)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_the_bytes_that_are_allocated(dtype):
    shapes = KVShape(2, 8, 8), KVShape(1, 16, 10), KVShape(4, 6, 12)
    cache = init_cache(shapes, 3, 10, jnp.dtype(dtype))
    assert cache.capacity == 10
    assert [layer.k.shape for layer in cache.layers] == [(3, n, 10, k) for n, k, _ in shapes]
    assert [layer.v.shape for layer in cache.layers] == [(3, n, v, 10) for n, _, v in shapes]
    live = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert (
        live
        == cache_bytes(shapes, 3, 10, jnp.dtype(dtype))
        == 3 * 10 * 130 * (jnp.dtype(dtype).itemsize)
    )


def test_latent_layers_are_refused_and_counted():
    shapes = KVShape(2, 8, 8), KVShape(1, 24, 0)
    with pytest.raises(UnsupportedError, match="dense rows: got layers of latent attention"):
        init_cache(shapes, 3, 10, jnp.dtype("float32"))
    assert cache_bytes(shapes, 3, 10, jnp.dtype("float32")) == 4 * 3 * 10 * (32 + 24)


def test_a_cache_is_an_immutable_tree():
    cache = init_cache(SHAPES, B, CAPACITY, jnp.dtype("float32"))
    with pytest.raises(AttributeError):
        cache.layers = ()
    assert len(jax.tree.leaves(cache)) == 2
