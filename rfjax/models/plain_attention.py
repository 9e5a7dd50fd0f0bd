"""Attention over heads of keys and values, from a layer's input to its heads' results."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfjax.cache.dense import LayerCache, append
from rfjax.cache.paged import LayerPages, append_pages
from rfjax.models.attention_inputs import AttentionInputs, LayerView
from rfjax.models.config import LayerConfig, ModelConfig
from rfjax.models.normalize import normalized
from rfjax.models.params import Block, Norm
from rfjax.models.temperature import growth
from rfjax.ops import linear
from rfjax.ops.attention import attention
from rfjax.ops.decode_attention import decode_attention
from rfjax.ops.linear import Projection, linears
from rfjax.ops.norm import rms_norm
from rfjax.ops.paged_attention import paged_attention
from rfjax.ops.paged_decode_attention import paged_decode_attention
from rfjax.ops.rope import apply_rope, identity_tables
from rfjax.ops.scores import ScoreTerms, alibi_slopes
from rfjax.typing import Array, Float

Tables = tuple[Array, Array]
"""Cosine and sine of every token's angles."""


class _Heads(NamedTuple):
    """Queries, keys and values, and what of their norms and rotation is yet to be done."""

    q: Float[Array, "T N H"]
    k: Float[Array, "T K H"]
    v: Float[Array, "T K H"]
    tables: Tables | None
    q_norm: Float[Array, " H"] | None = None
    k_norm: Float[Array, " H"] | None = None


def plain_attention(
    block: Block,
    x: Float[Array, "T D"],
    norm: linear.Norm | None,
    inputs: AttentionInputs,
    cache: LayerView,
    tables: Tables | None,
    layer: LayerConfig,
    config: ModelConfig,
) -> tuple[Float[Array, "T NH"], LayerCache | LayerPages | None]:
    """The heads' results before the output projection, and the layer's written cache.

    Args:
        block: the layer's weights.
        x: its input, normalised already where `norm` is None.
        norm: to apply first.
        inputs: the rows of tokens.
        cache: the layer's part of the cache.
        tables: of its rotation, or None.
        layer: its mechanisms.
        config: the model's.
    """
    with jax.named_scope("qkv"):
        heads = _project(block, x, norm, tables, layer, config)
    one = cache is not None and inputs.positions.shape[1] == 1
    with jax.named_scope("attention"):
        attend = _attend_one if one else _attend_rows
        return attend(block, heads, inputs, cache, layer, config)


def _project(block, x, norm, tables, layer: LayerConfig, config: ModelConfig) -> _Heads:
    stems = [Projection(p.weight, p.bias) for p in (block.attn_q, block.attn_k, block.attn_v)]
    projected = linears(x, stems, norm=norm, policy=config.kernels)
    if layer.clamp_qkv:
        projected = [jnp.clip(y, -layer.clamp_qkv, layer.clamp_qkv) for y in projected]
    counts = (layer.n_heads, layer.n_kv_heads, layer.n_kv_heads)
    q, k, v = (y.reshape(y.shape[0], n, -1) for y, n in zip(projected, counts, strict=True))
    qk_norm = layer.qk_norm
    if qk_norm is None:
        return _Heads(q, k, v, tables)
    q_norm, k_norm = block.attn_q_norm, block.attn_k_norm
    assert q_norm is not None and k_norm is not None
    known = config.norm == "rms" and q_norm.bias is None and qk_norm.over == "head"
    if known and not qk_norm.after_rope:  # attention's kernels do it
        return _Heads(q, k, v, tables, q_norm.weight, k_norm.weight)
    if qk_norm.after_rope and tables is not None:
        q, k = _rotated(q, tables, layer), _rotated(k, tables, layer)
        tables = None
    whole = qk_norm.over == "all_heads"
    q, k = (_normalized_heads(y, n, whole, config) for y, n in ((q, q_norm), (k, k_norm)))
    return _Heads(q, k, v, tables)


def _normalized_heads(x: Array, norm: Norm, whole: bool, config: ModelConfig) -> Array:
    """Heads `[T, N, H]`, each normalised by itself or a token's all together."""
    if whole:
        return normalized(x.reshape(x.shape[0], -1), norm, config).reshape(x.shape)
    return normalized(x, norm, config)


def _rotated(x: Array, tables: Tables, layer: LayerConfig) -> Array:
    assert layer.rope is not None
    return apply_rope(x, *tables, layer.rope.pairing)


def _terms(block: Block, layer: LayerConfig) -> ScoreTerms:
    """What is done to scores besides scaling and masking."""
    sinks = None if block.attn_sinks is None else block.attn_sinks.weight
    slopes = jnp.asarray(alibi_slopes(layer.n_heads, layer.alibi)) if layer.alibi else None
    return ScoreTerms(sinks=sinks, slopes=slopes, softcap=layer.softcap)


def _attend_one(block, heads: _Heads, inputs, cache, layer: LayerConfig, config: ModelConfig):
    """A decode step: one token a row, from its heads to the written cache."""
    if isinstance(cache, tuple):
        attend = functools.partial(paged_decode_attention, heads.q, heads.k, heads.v, *cache)
    else:
        attend = functools.partial(
            decode_attention, heads.q, heads.k, heads.v, cache, key_lengths=inputs.key_lengths
        )
    # Without a rotation the kernels turn by no angle, which changes no bit.
    cos, sin = heads.tables or identity_tables(heads.q.shape[0], layer.head_dim // 2)
    turned = heads.tables is not None and layer.rope is not None
    return attend(
        cos=cos,
        sin=sin,
        positions=inputs.positions[:, 0],
        mask=layer.mask,
        scale=layer.attention_scale,
        pairing=layer.rope.pairing if turned and layer.rope else "half",
        eps=config.norm_eps,
        q_norm=heads.q_norm,
        k_norm=heads.k_norm,
        q_multiplier=growth(layer.temperature, inputs),
        terms=_terms(block, layer),
        policy=config.kernels,
    )


def _attend_rows(block, heads: _Heads, inputs, cache, layer: LayerConfig, config: ModelConfig):
    """Rows of tokens: prefill into a cache, or scoring without one."""
    batch, length = inputs.positions.shape
    q, k, v = heads.q, heads.k, heads.v
    if heads.q_norm is not None and heads.k_norm is not None:
        q = rms_norm(q, heads.q_norm, config.norm_eps)
        k = rms_norm(k, heads.k_norm, config.norm_eps)
    if heads.tables is not None:
        with jax.named_scope("rope"):
            q, k = _rotated(q, heads.tables, layer), _rotated(k, heads.tables, layer)
    grown = growth(layer.temperature, inputs)
    if grown is not None:
        q = (q.astype(jnp.float32) * grown[:, None, None]).astype(q.dtype)
    rows = lambda y: y.reshape(batch, length, *y.shape[1:])  # noqa: E731
    if isinstance(cache, tuple):
        pages, table = cache
        pages = append_pages(pages, table, rows(k), rows(v), inputs.positions)
        out = paged_attention(
            rows(q),
            pages,
            table,
            query_positions=inputs.positions,
            key_lengths=inputs.key_lengths,
            mask=layer.mask,
            scale=layer.attention_scale,
            terms=_terms(block, layer),
            policy=config.kernels,
        )
        return out.reshape(batch * length, -1), pages
    if cache is None:
        keys, values = rows(k).transpose(0, 2, 1, 3), rows(v).transpose(0, 2, 3, 1)
        # Held as they are: folded into the products, the transpositions would change the
        # order of the sums (see `rfjax.ops.attention`).
        keys, values = jax.lax.optimization_barrier((keys, values))
    else:
        cache = append(cache, rows(k), rows(v), inputs.positions)
        keys, values = cache.k, cache.v
    out = attention(
        rows(q),
        keys,
        values,
        query_positions=inputs.positions,
        key_lengths=inputs.key_lengths,
        mask=layer.mask,
        scale=layer.attention_scale,
        terms=_terms(block, layer),
        keys_are_queries=cache is None,
        policy=config.kernels,
    )
    return out.reshape(batch * length, -1), cache
