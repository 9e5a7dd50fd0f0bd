"""Attention in plain JAX over blocks of keys of one size, each as it is needed.

A row's result depends on its own keys alone, bit for bit in f32 on the CPU: all rows take the same
blocks, and a block of which a row sees nothing leaves what the row has summed as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rfjax.ops.mask import Mask, allowed, first_seen
from rfjax.ops.reduce import copies_for, exp_below_best, repeated, row_sum, rows_product
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.typing import Array, Float, Int

KEYS_AT_ONCE = 256
"""Keys of a block of a cache. A constant: it decides the order of sums."""

_FLOOR = -1e30
"""The best score before any is seen: finite, so that its difference to itself is a number."""

Block = tuple[Float[Array, "B K S H"], Float[Array, "B K S V"]]


def blockwise_attention(
    q: Float[Array, "B L N H"],
    load: Callable[[Int[Array, ""]], Block],
    block_size: int,
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
    n_blocks: int | None = None,
) -> Float[Array, "B L N V"]:
    """Softmax attention with grouped heads: query head n reads kv head n // (N/K).

    Scores, softmax and sums are f32; the result has the dtype of `q`. A query that may see no key
    gets zeros. Source of the running softmax: Milakov and Gimelshein, "Online normalizer
    calculation for softmax" (2018).

    Args:
        q: queries.
        load: keys and values at positions `[i * block_size, (i + 1) * block_size)` of every row,
            for a traced i; anything, NaN too, where a row sees none.
        block_size: keys of a block.
        query_positions: absolute; -1 marks padding.
        key_lengths: real keys of each row; at least one more than its last query's position.
        mask: which of them a query sees.
        scale: multiplies the scores.
        terms: what else is done to them.
        n_blocks: how many blocks to take, which makes it differentiable; None takes those of which
            a row sees something.
    """
    batch, length, n_heads, _ = q.shape
    n_scores = batch * length * n_heads * block_size
    copies = copies_for(n_scores) if q.dtype == jnp.float32 else 1
    if copies > 1:  # so that the softmax below is always computed in one way
        q = jax.lax.optimization_barrier(repeated(q, copies, 1))
        query_positions = repeated(query_positions, copies, 1)
    state = _over_blocks(
        q, load, block_size, query_positions, key_lengths, mask, scale, terms, n_blocks
    )
    _, n_kv, _, value_dim = state.shape
    out = state.reshape(batch, n_kv, length * copies, n_heads // n_kv, value_dim)
    out = out.transpose(0, 2, 1, 3, 4).reshape(batch, -1, n_heads, value_dim)
    if copies > 1:
        out = jax.lax.optimization_barrier(out)[:, :length]
    return out.astype(q.dtype)


def _over_blocks(q, load, size, query_positions, key_lengths, mask, scale, terms, n_blocks):
    """Attention of the rows of all queries that share a kv head, f32 [B, K, L * G, V]."""
    batch, length, n_heads, head_dim = q.shape
    _, n_kv, _, value_dim = jax.eval_shape(load, jnp.int32(0))[1].shape
    group = n_heads // n_kv
    rows = q.reshape(batch, length, n_kv, group, head_dim).transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(batch, n_kv, length * group, head_dim)
    by_head = lambda x: x.reshape(1, n_kv, 1, group).astype(jnp.float32)  # noqa: E731

    # What no query of a row sees may be another sequence's by now, and hold anything.
    real = query_positions >= 0
    nowhere = jnp.int32(2**31 - 1)  # where padding begins to look
    first = jnp.where(real, first_seen(mask, query_positions), nowhere)
    first = jnp.min(first, axis=1)
    begin, end = 0, n_blocks
    if end is None:
        begin, end = jnp.min(first) // size, -(-jnp.max(key_lengths) // size)

    def step(i, carry):
        acc, best, total = carry
        k, v = load(i)
        # Held as they are: folded into the products, transpositions would change the order of
        # the sums (see `rows_product`).
        keys = (i * size + jnp.arange(size, dtype=jnp.int32))[None, :]
        looked_at = (keys >= first[:, None]) & (keys < key_lengths[:, None])
        v = jnp.where(looked_at[:, None, :, None], v, jnp.zeros_like(v)).swapaxes(2, 3)
        k, v = jax.lax.optimization_barrier((k, v))
        scores = rows_product(rows, k).reshape(batch, n_kv, length, group, size) * jnp.float32(
            scale
        )
        if terms.softcap:
            scores = jnp.float32(terms.softcap) * jnp.tanh(scores / jnp.float32(terms.softcap))
        if terms.slopes is not None:
            distance = (keys[None] - query_positions[:, :, None])[:, None, :, None, :]
            scores = scores + by_head(terms.slopes)[..., None] * distance.astype(jnp.float32)
        seen = allowed(mask, query_positions[:, :, None], keys[None]) & looked_at[:, None, :]
        seen &= real[:, :, None]
        seen = seen[:, None, :, None, :]
        scores = jnp.where(seen, scores, jnp.float32(_FLOOR))
        # The block's best has no part in the gradient: any number in its place gives the same
        # result, and that of a maximum is NaN where XLA computes anew what it is compared with.
        higher = jnp.maximum(best, jnp.max(jax.lax.stop_gradient(scores), axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), jnp.float32(0))
        shrink = exp_below_best(best.reshape(-1, 1), higher.reshape(-1, 1)).reshape(best.shape)
        # Neither is below 0: the maximum keeps XLA from fusing product and sum, which it does or
        # does not, depending on the number of rows.
        total = jnp.maximum(total * shrink, jnp.float32(0)) + row_sum(weights)[..., 0]
        weights = weights.reshape(batch, n_kv, length * group, size).astype(v.dtype)
        product = rows_product(weights, v).reshape(acc.shape)
        return acc * shrink[..., None] + product, higher, total

    shape = (batch, n_kv, length, group)
    if terms.sinks is None:
        best, total = jnp.full(shape, _FLOOR, jnp.float32), jnp.zeros(shape, jnp.float32)
    else:
        best, total = jnp.broadcast_to(by_head(terms.sinks), shape), jnp.ones(shape, jnp.float32)
    acc = jnp.zeros((*shape, value_dim), jnp.float32)
    acc, _, total = jax.lax.fori_loop(begin, end, step, (acc, best, total))
    # By the reciprocal: XLA turns the division into that or not, depending on the shape.
    acc = acc * (1.0 / jnp.maximum(total, jnp.float32(1e-30)))[..., None]
    return acc.reshape(batch, n_kv, length * group, value_dim)
