"""Attention over dense keys and values: the plain-JAX reference."""

import jax
import jax.numpy as jnp

from rfjax.ops.mask import Mask, allowed
from rfjax.ops.reduce import row_sum, rows_product
from rfjax.typing import Array, Float, Int

_QUERY_BLOCK = 128
"""Query tokens computed at a time: bounds the scores to [B, K, 128 * G, S]."""

_FUSED_ELEMENTS = 4096
"""XLA's CPU backend computes the softmax of fewer scores in another way (its exponential differs in
the last bit), so that f32 queries are repeated up to this many: only tiny models ever are."""


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K H S"],
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    keys_are_queries: bool = False,
) -> Float[Array, "B L N H"]:
    """Softmax attention with grouped heads: query head n reads kv head n // (N/K).

    Keys stand at positions 0..S-1, of which the first `key_lengths` of each row are real. Values
    come transposed (`[..., H, S]`), so that both products contract their last axes (see
    `rows_product`). Scores, softmax and sums are f32; the result has the
    dtype of `q`. A query that may see no key gets zeros.

    Args:
        keys_are_queries: the S keys are the L queries' own tokens at positions 0..L-1, so that a
            block of queries needs no keys behind itself under a causal mask.
    """
    length, block = q.shape[1], _QUERY_BLOCK
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = stop if keys_are_queries and mask.kind != "bidirectional" else k.shape[2]
        outputs.append(
            _attend(
                q[:, start:stop],
                k[:, :, :seen],
                v[:, :, :, :seen],
                query_positions[:, start:stop],
                key_lengths,
                mask,
                scale,
            )
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _attend(q, k, v, query_positions, key_lengths, mask, scale):
    batch, length, n_heads, head_dim = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    group = n_heads // n_kv

    copies = 1
    if q.dtype == jnp.float32:
        copies = -(-_FUSED_ELEMENTS // (batch * length * n_heads * n_keys))
    if copies > 1:
        q = jax.lax.optimization_barrier(jnp.concatenate([q] * copies, axis=1))
        query_positions = jnp.concatenate([query_positions] * copies, axis=1)
        length *= copies

    # Rows of the products: one per (token, head of the group).
    rows = q.reshape(batch, length, n_kv, group, head_dim).transpose(0, 2, 1, 3, 4)
    scores = rows_product(rows.reshape(batch, n_kv, length * group, head_dim), k)
    scores = scores.reshape(batch, n_kv, length, group, n_keys) * jnp.float32(scale)

    keys = jnp.arange(n_keys, dtype=query_positions.dtype)
    visible = allowed(mask, query_positions[:, :, None], keys[None, None, :])
    visible &= keys[None, None, :] < key_lengths[:, None, None]
    visible = visible[:, None, :, None, :]
    # A finite floor: a row without visible keys must not become NaN (its weights are zeroed).
    scores = jnp.where(visible, scores, jnp.float32(-1e30))
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(visible, weights, jnp.float32(0))
    total = row_sum(weights)

    rows = weights.reshape(batch, n_kv, length * group, n_keys)
    out = rows_product(rows.astype(v.dtype), v)
    out = out.reshape(batch, n_kv, length, group, head_dim)
    out = out / jnp.maximum(total, jnp.float32(1e-30))
    out = out.transpose(0, 2, 1, 3, 4).reshape(batch, length, n_heads, head_dim)
    if copies > 1:
        out = jax.lax.optimization_barrier(out)[:, : length // copies]
    return out.astype(q.dtype)
