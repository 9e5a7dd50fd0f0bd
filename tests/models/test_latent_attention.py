"""Latent attention against keys and values made of every head, with and without pages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from support.latent_reference import latent_reference
from support.random_model import uniform
from support.tiny_model import q8_0

from rfjax.cache.kv_shape import KVShape
from rfjax.cache.paged import init_paged_cache, pages_sharding
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import AttentionTemperature, Latent, LayerConfig, ModelConfig
from rfjax.models.latent_attention import latent_attention
from rfjax.models.params import Block, Linear
from rfjax.models.params import Norm as NormWeight
from rfjax.ops.linear import Norm
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope, rope_tables
from rfjax.quant.qtensor import dequantize_packed, pack
from rfjax.quant.types import GGMLType
from rfjax.sharding import make_mesh

WIDTH, LENGTH, PAGE, EPS, SCALE = 32, 40, 16, 1e-5, 0.3
BASE = 100.0
LATENTS = {
    "bottleneck, split": (4, Latent(20, 24, 12, 8, 10, split=True)),
    "bottleneck, joint": (4, Latent(20, 24, 12, 8, 10, split=False)),
    "direct, split": (3, Latent(0, 24, 12, 8, 28, split=True)),
    "direct, joint": (1, Latent(0, 24, 12, 8, 10, split=False)),
}


def layer_of(name, **changes):
    n_heads, latent = LATENTS[name]
    rope = Rope("interleaved", latent.rope_dim, BASE)
    head_dim = latent.nope_dim + latent.rope_dim
    layer = LayerConfig(n_heads, 1, head_dim, SCALE, Mask(), rope, "silu", 0, None, latent=latent)
    return dataclasses.replace(layer, **changes)


def weights_of(layer, seed=0):
    n, latent = layer.n_heads, layer.latent
    sizes = {"attn_kv_a_mqa": (latent.kv_rank + latent.rope_dim, WIDTH)}
    norms = {"attn_norm": WIDTH, "attn_kv_a_norm": latent.kv_rank}
    if latent.q_rank:
        sizes |= {"attn_q_a": (latent.q_rank, WIDTH)}
        sizes |= {"attn_q_b": (n * layer.head_dim, latent.q_rank)}
        norms |= {"attn_q_a_norm": latent.q_rank}
    else:
        sizes |= {"attn_q": (n * layer.head_dim, WIDTH)}
    if latent.split:
        sizes |= {"attn_k_b": (n, latent.kv_rank, latent.nope_dim)}
        sizes |= {"attn_v_b": (n, latent.value_dim, latent.kv_rank)}
    else:
        sizes |= {"attn_kv_b": (n * (latent.nope_dim + latent.value_dim), latent.kv_rank)}
    # Gains above 1: scores must not be close to equal.
    drawn = {stem: uniform(seed, stem, s, 1.5 * s[-1] ** -0.5) for stem, s in sizes.items()}
    drawn |= {stem: 1 + uniform(seed, stem, (size,), 0.25) for stem, size in norms.items()}
    return drawn


def block_of(weights):
    kinds = {stem: NormWeight if "norm" in stem else Linear for stem in weights}
    return Block(**{stem: kinds[stem](weight) for stem, weight in weights.items()})


CONFIG = ModelConfig("deepseek2", 8, WIDTH, 64, EPS, (), tied_output=False)


@functools.partial(jax.jit, static_argnames="layer")
def attend(weights, x, positions, pages=None, table=None, *, layer):
    """[B, L, N * V] of rows x [B, L, D] at their positions, and the pages."""
    inputs = AttentionInputs(positions, positions.max(axis=1) + 1)
    block, flat = block_of(weights), x.reshape(-1, WIDTH)
    tables = rope_tables(layer.rope, inputs.flat_positions)
    norm, view = Norm(block.attn_norm.weight, EPS), None if pages is None else (pages, table)
    out, pages = latent_attention(block, flat, norm, inputs, view, tables, layer, CONFIG)
    return out.reshape(*positions.shape, -1), pages


def hidden(seed, batch=1, length=LENGTH):
    return uniform(seed, "x", (batch, length, WIDTH), 1.0)


def expected(weights, x, layer, growth=None):
    return latent_reference(
        weights, x, layer.latent, layer.n_heads, scale=SCALE, eps=EPS, base=BASE, growth=growth
    )


def fresh(layer, batch, dtype="float32"):
    """Pages in which NaN stands so far, and tables of three of them a row."""
    latent = layer.latent
    shape = KVShape(1, latent.kv_rank + latent.rope_dim, 0)
    cache = init_paged_cache((shape,), (0,), (3 * batch + 2,), PAGE, jnp.dtype(dtype))
    if dtype == "float32":
        cache = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), cache)
    order = np.random.default_rng(0).permutation(np.arange(1, 3 * batch + 1, dtype=np.int32))
    return cache.layers[0], order.reshape(batch, 3)


def in_steps(weights, x, layer, sizes, dtype="float32"):
    pages, table = fresh(layer, len(x), dtype)
    parts, start = [], 0
    for size in sizes:
        at = np.arange(start, start + size, dtype=np.int32)
        at = np.broadcast_to(at, (len(x), size))
        out, pages = attend(weights, x[:, start : start + size], at, pages, table, layer=layer)
        parts.append(out)
        start += size
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("name", LATENTS)
def test_it_is_attention_over_keys_and_values_of_every_head(name):
    layer = layer_of(name)
    weights, x = weights_of(layer), hidden(1)
    wanted = expected(weights, x[0], layer)
    at = np.arange(LENGTH, dtype=np.int32)[None]
    for pages, table in ((None, None), fresh(layer, 1)):
        out, _ = attend(weights, x, at, pages, table, layer=layer)
        assert_allclose(out[0], wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["bottleneck, split", "direct, joint"])
def test_prefill_equals_decode_steps_and_chunks(name):
    layer = layer_of(name)
    weights, x = weights_of(layer), hidden(2)
    whole = in_steps(weights, x, layer, [LENGTH])
    assert_array_equal(whole, in_steps(weights, x, layer, [1] * LENGTH))
    assert_array_equal(whole, in_steps(weights, x, layer, [20, 20]))


def test_a_row_alone_equals_the_row_in_a_batch():
    layer = layer_of("bottleneck, split")
    weights, x = weights_of(layer), hidden(3, batch=5)
    together = in_steps(weights, x, layer, [20, 1, 1])
    at = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (5, LENGTH))
    without_pages, _ = attend(weights, x, at, layer=layer)
    for i in (0, 4):
        row = x[i : i + 1]
        assert_array_equal(together[i : i + 1], in_steps(weights, row, layer, [20, 1, 1]))
        alone, _ = attend(weights, row, at[:1], layer=layer)
        assert_array_equal(without_pages[i : i + 1], alone)


def test_padding_is_not_written_and_changes_nothing():
    layer = layer_of("direct, joint")
    weights, x = weights_of(layer), hidden(4, batch=2, length=20)
    pages, table = fresh(layer, 2)
    positions = np.stack([np.arange(20), np.where(np.arange(20) < 13, np.arange(20), -1)])
    positions = positions.astype(np.int32)
    out, pages = attend(weights, x, positions, pages, table, layer=layer)
    assert_array_equal(out[1, :13], in_steps(weights, x[1:, :13], layer, [13])[0])
    assert not np.asarray(out[1, 13:]).any()
    kept = np.asarray(pages.k)[table[1]].reshape(-1, pages.k.shape[-1])
    assert np.isfinite(kept[:13]).all() and np.isnan(kept[13:]).all()


def test_queries_grow_with_their_position():
    layer = layer_of("direct, joint", temperature=AttentionTemperature(0.4, 8))
    weights, x = weights_of(layer), hidden(5)
    wanted = expected(weights, x[0], layer, (0.4, 8))
    assert_allclose(in_steps(weights, x, layer, [LENGTH])[0], wanted, atol=1e-4)
    assert np.abs(wanted - expected(weights, x[0], layer)).max() > 0.05


def test_pages_of_eight_bits_hold_about_the_same():
    layer = layer_of("bottleneck, split")
    weights, x = weights_of(layer), hidden(6)
    exact = in_steps(weights, x, layer, [20, 20])
    rounded = in_steps(weights, x, layer, [20, 20], dtype="int8")
    error = np.square(rounded - exact).sum() / np.square(exact).sum()
    assert 1e-8 < error < 1e-3


def test_packed_weights_give_what_their_values_give():
    n_heads, latent = 2, Latent(0, 32, 32, 8, 32, split=True)
    layer = dataclasses.replace(layer_of("direct, split"), n_heads=n_heads, latent=latent)
    layer = dataclasses.replace(layer, head_dim=40, rope=Rope("interleaved", 8, BASE))
    weights = weights_of(layer)
    packed = {}
    for stem in ("attn_k_b", "attn_v_b"):
        raw = q8_0(weights[stem].reshape(-1, 32))
        blocks = np.frombuffer(raw.data, np.uint8).reshape(*weights[stem].shape[:2], -1, 34)
        packed[stem] = pack(jnp.asarray(blocks), GGMLType.Q8_0)
        weights[stem] = dequantize_packed(packed[stem])
    at = np.arange(20, dtype=np.int32)[None]
    x, (pages, table) = hidden(7, length=20), fresh(layer, 1)
    plain, _ = attend(weights, x, at, pages, table, layer=layer)
    assert_array_equal(attend(weights | packed, x, at, pages, table, layer=layer)[0], plain)


def test_heads_spread_over_a_mesh_attend_alike():
    layer = layer_of("bottleneck, split")
    weights, x = weights_of(layer), hidden(8)
    mesh = make_mesh(data=1, model=2)
    at = np.arange(LENGTH, dtype=np.int32)[None]
    pages, table = fresh(layer, 1)
    alone, kept = attend(weights, x, at, pages, table, layer=layer)
    by_head = {
        stem: jax.device_put(w, NamedSharding(mesh, PartitionSpec("model")))
        if stem in ("attn_q_b", "attn_k_b", "attn_v_b")
        else jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
        for stem, w in weights.items()
    }
    pages = jax.device_put(fresh(layer, 1)[0], pages_sharding(mesh, 1))
    spread, written = attend(by_head, x, at, pages, table, layer=layer)
    assert_allclose(spread, alone, atol=1e-5)
    assert_allclose(written.k, kept.k, atol=1e-5)
