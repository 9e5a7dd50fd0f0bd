"""Latent attention against keys and values made of every head, with and without pages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from support.latent_case import (
    BASE,
    LATENTS,
    LENGTH,
    attend,
    expected,
    fresh,
    hidden,
    in_steps,
    layer_of,
    weights_of,
)
from support.tiny_model import q8_0

from rfjax.cache.paged import pages_sharding
from rfjax.models.config import AttentionTemperature, Latent
from rfjax.ops.rope import Rope
from rfjax.quant.qtensor import dequantize_packed, pack
from rfjax.quant.types import GGMLType
from rfjax.sharding import make_mesh

pytestmark = pytest.mark.quick_compile


@pytest.mark.parametrize("name", LATENTS)
def test_it_is_attention_over_keys_and_values_of_every_head(name):
    layer = layer_of(name)
    weights, x = weights_of(layer), hidden(1)
    wanted = expected(weights, x[0], layer)
    at = np.arange(LENGTH, dtype=np.int32)[None]
    for pages, table in ((None, None), fresh(layer, 1)):
        out, _ = attend(weights, x, at, pages, table, layer=layer)
        assert_allclose(out[0], wanted, atol=2e-5 * np.abs(wanted).max())


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
