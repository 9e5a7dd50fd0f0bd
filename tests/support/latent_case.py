"""Small layers of latent attention with random weights, run with and without pages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from support.latent_reference import latent_reference
from support.random_model import uniform

from rfjax.cache.kv_shape import KVShape
from rfjax.cache.paged import init_paged_cache
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import Latent, LayerConfig, ModelConfig
from rfjax.models.latent_attention import latent_attention
from rfjax.models.params import Block, Linear
from rfjax.models.params import Norm as NormWeight
from rfjax.ops.linear import Norm
from rfjax.ops.mask import Mask
from rfjax.ops.rope import Rope, rope_tables

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
