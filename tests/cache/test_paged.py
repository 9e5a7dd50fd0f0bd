"""Pages: written where tables say, read back, copied, spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rfjax.cache.kv_shape import KVShape
from rfjax.cache.paged import (
    LatentLayer,
    append_latent,
    append_pages,
    copy_pages,
    init_paged_cache,
    page_bytes,
    pages_sharding,
    quantize_heads,
    read_latent,
    read_pages,
)
from rfjax.sharding import make_mesh

KV, SIZE, HEAD, WIDTH, PAGES = 2, 16, 4, 3, 12

append = jax.jit(append_pages)


def empty(dtype="float32"):
    cache = init_paged_cache((KVShape(KV, HEAD, HEAD),), (0,), (PAGES,), SIZE, jnp.dtype(dtype))
    return cache.layers[0]


def tokens(seed, *shape):
    return np.random.default_rng(seed).standard_normal((*shape, KV, HEAD)).astype(np.float32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_what_is_written_at_positions_is_read_there(seed):
    rng = np.random.default_rng(seed)
    table = rng.permutation(np.arange(1, 1 + 2 * WIDTH)).reshape(2, WIDTH).astype(np.int32)
    # Some of the positions of each row, in any order, and padding.
    positions = np.stack([rng.permutation(WIDTH * SIZE)[:9] for _ in range(2)]).astype(np.int32)
    positions[rng.random(positions.shape) < 0.2] = -1
    k, v = tokens(seed, 2, 9), tokens(seed + 1, 2, 9)
    layer = append(empty(), table, k, v, positions)
    keys, values = read_pages(layer, jnp.asarray(table), jnp.dtype("float32"))
    expected = np.zeros((2, 2, KV, WIDTH * SIZE, HEAD), np.float32)
    for row, i in np.ndindex(positions.shape):
        if positions[row, i] >= 0:
            expected[0, row, :, positions[row, i]] = k[row, i]
            expected[1, row, :, positions[row, i]] = v[row, i]
    assert_array_equal(keys, expected[0])
    assert_array_equal(values, expected[1])
    others = np.setdiff1d(np.arange(PAGES), table)
    assert not np.asarray(layer.k)[others].any()


@pytest.mark.parametrize("position", [-1, -1000, WIDTH * SIZE, 2**30])
def test_positions_outside_of_the_table_write_nothing(position):
    table = np.array([[1, 2, 3]], np.int32)
    positions = np.array([[position]], np.int32)
    layer = append(empty(), table, tokens(0, 1, 1), tokens(1, 1, 1), positions)
    assert not np.asarray(layer.k).any() and not np.asarray(layer.v).any()


def test_eight_bits_are_the_nearest_of_255_steps_a_head():
    x = tokens(3, 5) * np.float32([0.01, 1, 100, 1, 0])[:, None, None]
    x[3, 0] = [127, -127, 0.5, 1.5]  # halves go to the even one
    values, scales = (np.asarray(y) for y in quantize_heads(jnp.asarray(x)))
    assert values.dtype == np.int8
    assert np.abs(values.astype(np.int32)).max(axis=-1)[:4].min() == 127
    assert_allclose(values * scales[..., None], x, atol=np.abs(x).max() / 254)
    error = np.abs(values * scales[..., None] - x)
    assert (error <= np.abs(x).max(axis=-1, keepdims=True) / 254 * 1.0001).all()
    assert values[3, 0].tolist() == [127, -127, 0, 2]
    assert not values[4].any() and not scales[4].any()


def test_nan_survives_eight_bits():
    x = tokens(0, 1)
    x[0, 1, 2] = np.nan
    _, scales = quantize_heads(jnp.asarray(x))
    assert np.isfinite(scales[0, 0]) and np.isnan(scales[0, 1])


def test_an_eight_bit_cache_reads_what_was_quantized():
    layer, table = empty("int8"), np.array([[4, 2, 7]], np.int32)
    assert layer.k.dtype == jnp.int8 and layer.k_scale.shape == (PAGES, KV, SIZE)
    k, v = tokens(0, 1, 20), tokens(1, 1, 20)
    layer = append(layer, table, k, v, np.arange(20, dtype=np.int32)[None])
    keys, values = read_pages(layer, jnp.asarray(table), jnp.dtype("float32"))
    for read, wrote in ((keys, k), (values, v)):
        wrote = wrote.transpose(0, 2, 1, 3)
        bound = np.abs(wrote).max(axis=-1, keepdims=True) / 254 * 1.0001
        assert (np.abs(np.asarray(read)[:, :, :20] - wrote) <= bound).all()
        assert not np.asarray(read)[:, :, 20:].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_copies_read_all_sources_before_they_write(dtype):
    cache = init_paged_cache(
        (KVShape(KV, HEAD, HEAD), KVShape(1, 3 * HEAD, 0)), (0, 1), (6, 4), SIZE, jnp.dtype(dtype)
    )
    number = lambda x: jnp.broadcast_to(  # noqa: E731
        jnp.arange(x.shape[0], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)), x.shape
    )
    cache = jax.tree.map(number, cache)
    swap = np.array([2, 3, 1], np.int32), np.array([3, 2, 6], np.int32)  # 6: padding
    nothing = np.array([0], np.int32), np.array([4], np.int32)
    copied = jax.jit(copy_pages)(cache, (swap, nothing))
    for leaf in jax.tree.leaves(copied.layers[0]):
        assert leaf.reshape(6, -1)[:, 0].tolist() == [0, 1, 3, 2, 4, 5]
    for leaf in jax.tree.leaves(copied.layers[1]):
        assert leaf.reshape(4, -1)[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bytes_are_those_that_are_allocated(dtype):
    shapes = KVShape(2, 8, 8), KVShape(4, 16, 12), KVShape(1, 24, 0)
    cache = init_paged_cache(shapes, (0, 1, 0), (5, 7), SIZE, jnp.dtype(dtype))
    for group, n in ((0, 5), (1, 7)):
        own = [layer for layer, g in zip(cache.layers, cache.groups, strict=True) if g == group]
        layers = tuple(s for s, g in zip(shapes, cache.groups, strict=True) if g == group)
        allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(own))
        assert allocated == n * page_bytes(layers, SIZE, jnp.dtype(dtype))


def test_kv_heads_are_spread_over_a_mesh():
    mesh = make_mesh(data=2, model=2)
    cache = init_paged_cache((KVShape(4, 8, 8),), (0,), (5,), SIZE, jnp.dtype("int8"), mesh)
    layer = cache.layers[0]
    assert {s.data.shape for s in layer.k.addressable_shards} == {(5, 2, SIZE, 8)}
    assert {s.data.shape for s in layer.k_scale.addressable_shards} == {(5, 2, SIZE)}
    on_one = 5 * page_bytes((KVShape(4, 8, 8),), SIZE, jnp.dtype("int8"), mesh)
    assert on_one == sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) / 2
    odd = init_paged_cache(
        (KVShape(3, 8, 8),), (0,), (5,), SIZE, jnp.dtype("float32"), mesh
    ).layers[0]
    assert odd.k.sharding == pages_sharding(mesh, 3)
    assert odd.k.sharding.is_fully_replicated


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_latent_pages_hold_keys_alone(dtype):
    shape = KVShape(1, 24, 0)
    layer = init_paged_cache((shape,), (0,), (PAGES,), SIZE, jnp.dtype(dtype)).layers[0]
    assert isinstance(layer, LatentLayer) and layer.page_size == SIZE
    table, rng = np.array([[4, 2, 7]], np.int32), np.random.default_rng(0)
    k = rng.standard_normal((1, 21, 1, 24)).astype(np.float32)
    positions = np.append(np.arange(20, dtype=np.int32), np.int32(-1))[None]
    layer = jax.jit(append_latent)(layer, table, k, positions)
    read = np.asarray(read_latent(layer, jnp.asarray(table), jnp.dtype("float32")))
    assert read.shape == (1, 1, WIDTH * SIZE, 24) and not read[:, :, 20:].any()
    bound = 0 if dtype == "float32" else np.abs(k[:, :20, 0]).max() / 254 * 1.0001
    assert (np.abs(read[:, 0, :20] - k[:, :20, 0]) <= bound).all()


def test_latent_pages_are_on_every_device_of_a_mesh():
    mesh = make_mesh(data=2, model=2)
    shapes, dtype = (KVShape(1, 24, 0),), jnp.dtype("int8")
    layer = init_paged_cache(shapes, (0,), (5,), SIZE, dtype, mesh).layers[0]
    assert layer.k.sharding.is_fully_replicated
    assert 5 * page_bytes(shapes, SIZE, dtype, mesh) == 5 * SIZE * (24 + 4)
