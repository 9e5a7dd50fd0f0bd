"""DeepSeek's latent attention: keys and values of all heads are products of one vector a token.

Source: DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1 and appendix B. A token's vector is
`[c, r]`: c = norm(first kv_rank elements of `attn_kv_a_mqa x`), r = the rest, rotated. Head n has
keys `[k_b[n]' c, r]` and values `v_b[n] c`. Pages keep the vectors alone. Over pages a head's
query is taken to their space (`q' k_b' c = (k_b q)' c`), where all heads read one head of keys, of
which the values are a part, and `v_b` comes after the sum. Without a cache, where queries and keys
are as many, keys and values of the heads are made instead: their products are shorter.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rfjax.cache.dense import LayerCache
from rfjax.cache.paged import LatentLayer, append_latent, read_latent
from rfjax.models.attention_inputs import AttentionInputs, LayerView
from rfjax.models.config import Latent, LayerConfig, ModelConfig
from rfjax.models.params import Block, Linear
from rfjax.models.temperature import growth
from rfjax.ops.attention import attention
from rfjax.ops.blockwise_attention import KEYS_AT_ONCE, blockwise_attention
from rfjax.ops.linear import Norm, Projection, linears
from rfjax.ops.norm import rms_norm
from rfjax.ops.reduce import rows_product
from rfjax.ops.rope import apply_rope
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed
from rfjax.typing import Array, Float, Int


def latent_attention(
    block: Block,
    x: Float[Array, "T D"],
    norm: Norm | None,
    inputs: AttentionInputs,
    view: LayerView,
    tables: tuple[Float[Array, "T half"], Float[Array, "T half"]] | None,
    layer: LayerConfig,
    config: ModelConfig,
) -> tuple[Float[Array, "T NV"], LatentLayer | None]:
    """What the heads of one layer attend to, before `attn_output`, and its written pages.

    Scores, softmax and sums are f32; the result has the dtype of `x`. Over pages no kernel runs.

    Args:
        block: the layer's weights.
        x: hidden states of T = B * L flat tokens, normalised already where `norm` is None.
        norm: to apply before the projections.
        inputs: the B rows.
        view: the layer's pages and the rows' tables, or None: the rows attend within themselves.
        tables: cosine and sine of the tokens' positions, for the rotated elements alone.
        layer: its sizes, with `latent` set.
        config: the model's.
    """
    latent = layer.latent
    assert latent is not None and layer.rope is not None and tables is not None
    assert not isinstance(view, LayerCache)  # `init_cache` refuses latent layers
    batch, length = inputs.positions.shape
    rows = lambda y: y.reshape(batch, length, *y.shape[1:])  # noqa: E731
    with jax.named_scope("qkv"):
        q, vectors = _project(block, x, norm, latent, config)
    with jax.named_scope("rope"):
        kept, turned = jnp.split(q.reshape(len(x), layer.n_heads, -1), [latent.nope_dim], axis=-1)
        turned = apply_rope(turned, *tables, layer.rope.pairing)
        c, r = jnp.split(vectors[:, None, :], [latent.kv_rank], axis=-1)
        vectors = jnp.concatenate([c, apply_rope(r, *tables, layer.rope.pairing)], axis=-1)
        grown = growth(layer.temperature, inputs)
        if grown is not None:
            grown = grown[:, None, None]
            kept, turned = ((y.astype(jnp.float32) * grown).astype(y.dtype) for y in (kept, turned))
    to_keys, to_values = _per_head(block, layer.n_heads, latent, x)
    with jax.named_scope("attention"):
        if view is None:
            q = jnp.concatenate([kept, turned], axis=-1)
            out = _within_rows(rows(q), rows(vectors), to_keys, to_values, inputs, layer, config)
            return out.reshape(len(x), -1), None
        pages, table = view
        assert isinstance(pages, LatentLayer)
        pages = append_latent(pages, table, rows(vectors), inputs.positions)
        q = jnp.concatenate([_by_head(kept, to_keys), turned], axis=-1)
        summed = _over_pages(rows(q), pages, table, inputs, layer, latent.kv_rank)
        out = _by_head(summed.reshape(len(x), layer.n_heads, -1), to_values)
        return out.reshape(len(x), -1), pages


def _project(
    block: Block, x: Array, norm: Norm | None, latent: Latent, config: ModelConfig
) -> tuple[Float[Array, "T NH"], Float[Array, "T R"]]:
    """Queries, and the vectors of keys and values, before rotation."""
    eps, policy = config.norm_eps, config.kernels
    first = block.attn_q_a if latent.q_rank else block.attn_q
    q, vectors = linears(
        x, [_projection(first), _projection(block.attn_kv_a_mqa)], norm=norm, policy=policy
    )
    if latent.q_rank:
        assert block.attn_q_a_norm is not None and block.attn_q_a_norm.weight is not None
        narrow = Norm(block.attn_q_a_norm.weight, eps)
        (q,) = linears(q, [_projection(block.attn_q_b)], norm=narrow, policy=policy)
    assert block.attn_kv_a_norm is not None and block.attn_kv_a_norm.weight is not None
    c, r = jnp.split(vectors, [latent.kv_rank], axis=-1)
    return q, jnp.concatenate([rms_norm(c, block.attn_kv_a_norm.weight, eps), r], axis=-1)


def _projection(stem: Linear | None) -> Projection:
    assert stem is not None
    return Projection(stem.weight, stem.bias)


def _per_head(
    block: Block, n_heads: int, latent: Latent, x: Array
) -> tuple[Float[Array, "N R nope"], Float[Array, "N V R"]]:
    """What takes queries to the space of the vectors, and sums of vectors to values."""
    if latent.split:
        assert block.attn_k_b is not None and block.attn_v_b is not None
        return _plain(block.attn_k_b.weight, x), _plain(block.attn_v_b.weight, x)
    assert block.attn_kv_b is not None
    both = _plain(block.attn_kv_b.weight, x).reshape(n_heads, -1, latent.kv_rank)
    to_keys, to_values = jnp.split(both, [latent.nope_dim], axis=1)
    # Held as it is: folded into the product, the transposition would change the order of the sums.
    return jax.lax.optimization_barrier(to_keys.swapaxes(1, 2)), to_values


def _plain(weight: Weight, x: Array) -> Array:
    """A weight as plain numbers of the dtype of `x`; a packed one at the time that x is there."""
    if not isinstance(weight, QTensor):
        return weight.astype(x.dtype)
    planes, _ = jax.lax.optimization_barrier((weight.planes, jax.lax.stop_gradient(x)))
    return dequantize_packed(dataclasses.replace(weight, planes=planes), x.dtype)


def _by_head(
    x: Float[Array, "T N in"], weights: Float[Array, "N out in"]
) -> Float[Array, "T N out"]:
    """Each head's product with its own matrix, in the dtype of `x`."""
    x = jax.lax.optimization_barrier(x.swapaxes(0, 1))
    return rows_product(x, weights, x.dtype).swapaxes(0, 1)


def _within_rows(
    q: Float[Array, "B L N H"],
    vectors: Float[Array, "B L 1 R"],
    to_keys: Array,
    to_values: Array,
    inputs: AttentionInputs,
    layer: LayerConfig,
    config: ModelConfig,
) -> Float[Array, "B L N V"]:
    """Attention of rows within themselves, with keys and values of every head."""
    batch, length, n_heads, head_dim = q.shape
    latent = layer.latent
    assert latent is not None
    rank, value_dim = latent.kv_rank, latent.value_dim
    flat = vectors.reshape(batch * length, -1)

    def made(weights):  # [N, out, R] -> [B, L, N, out]
        y = rows_product(flat[:, :rank], weights.reshape(-1, rank), flat.dtype)
        return y.reshape(batch, length, n_heads, -1)

    turned = jnp.broadcast_to(vectors[..., rank:], (batch, length, n_heads, latent.rope_dim))
    keys = jnp.concatenate([made(to_keys.swapaxes(1, 2)), turned], axis=-1)
    values = made(to_values)
    # Of one length, as `attention` takes them: zeros change no score and no other element.
    size = max(head_dim, value_dim)
    q, keys, values = (
        jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, size - y.shape[-1]))) for y in (q, keys, values)
    )
    keys, values = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 3, 1)
    keys, values = jax.lax.optimization_barrier((keys, values))  # as `rfjax.models.decoder` does
    out = attention(
        q,
        keys,
        values,
        query_positions=inputs.positions,
        key_lengths=inputs.key_lengths,
        mask=layer.mask,
        scale=layer.attention_scale,
        keys_are_queries=True,
        policy=config.kernels,
    )
    return out[..., :value_dim]


def _over_pages(
    q: Float[Array, "B L N R"],
    pages: LatentLayer,
    table: Int[Array, "B M"],
    inputs: AttentionInputs,
    layer: LayerConfig,
    rank: int,
) -> Float[Array, "B L N rank"]:
    """Sums of the first `rank` elements of the vectors, one for each head."""
    n_together = max(1, KEYS_AT_ONCE // pages.page_size)

    def load(i):
        at = i * n_together + jnp.arange(n_together, dtype=jnp.int32)
        keys = read_latent(pages, jnp.take(table, at, axis=1, mode="clip"), q.dtype)
        return keys, keys[..., :rank]

    return blockwise_attention(
        q,
        load,
        n_together * pages.page_size,
        query_positions=inputs.positions,
        key_lengths=inputs.key_lengths,
        mask=layer.mask,
        scale=layer.attention_scale,
    )
