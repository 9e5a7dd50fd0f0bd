"""Attention over dense keys and values, and its plain-JAX reference."""

import functools

import jax
import jax.numpy as jnp

from rfjax.ops.blockwise_attention import KEYS_AT_ONCE, blockwise_attention
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.mask import Mask, allowed
from rfjax.ops.reduce import copies_for, exp_below_best, repeated, row_sum, rows_product
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.typing import Array, Float, Int

_MAX_SCORES = 1 << 26
"""Most scores held at a time (256 MiB in f32), as far as blocks of 16 queries allow."""

_SEGMENTS = 4
"""Parts a long row of queries is cut into, each with only the keys that causality leaves it: a
quarter of the square above the diagonal is computed in vain instead of all of it. More parts would
save little and compile longer."""

_LONG = 256
"""Queries from which cutting pays."""


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K H S"],
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
    keys_are_queries: bool = False,
    policy: KernelPolicy | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention with grouped heads: query head n reads kv head n // (N/K).

    Keys stand at positions 0..S-1, of which the first `key_lengths` of each row are real. Values
    come transposed (`[..., H, S]`), so that both products contract their last axes (see
    `rows_product`). Scores, softmax and sums are f32; the result has the dtype of `q`. A query that
    may see no key gets zeros.

    Args:
        query_positions: absolute position of each query; -1 marks padding, which sees nothing
            under a causal mask.
        key_lengths: real keys of each row.
        mask: which of them a query sees.
        scale: multiplies the scores.
        terms: what else is done to them.
        keys_are_queries: the S keys are the L queries' own tokens at positions 0..L-1, so that a
            block of queries needs no keys behind itself under a causal mask.
        policy: whether the kernel `prefill_attention` may run it; None takes plain JAX. Its
            gradients are those of plain JAX, and padding gets zeros under every mask.

    Raises:
        UnsupportedError: the policy asks for kernels by name and this one declines.
    """

    def declines(target):
        from rfjax.pallas import prefill_attention as kernel

        return kernel.declines(q, k, v, scale, target)

    target = kernel_target(policy, "prefill_attention", declines)
    if target is not None:
        return _by_kernel(
            (mask, scale, keys_are_queries, target), q, k, v, terms, query_positions, key_lengths
        )
    return _by_xla(q, k, v, terms, query_positions, key_lengths, mask, scale, keys_are_queries)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(static, q, k, v, terms, query_positions, key_lengths):
    """The kernel; it has no derivative of its own."""
    from rfjax.pallas import prefill_attention as kernel

    mask, scale, _, target = static
    return kernel.prefill_attention(
        q,
        k,
        v,
        query_positions=query_positions,
        key_lengths=key_lengths,
        mask=mask,
        scale=scale,
        terms=terms,
        target=target,
    )


def _forward_by_kernel(static, *arguments):
    return _by_kernel(static, *arguments), arguments


def _backward_by_xla(static, arguments, cotangent):
    mask, scale, keys_are_queries, _ = static
    *tensors, query_positions, key_lengths = arguments
    _, pull = jax.vjp(
        lambda q, k, v, terms: _by_xla(
            q, k, v, terms, query_positions, key_lengths, mask, scale, keys_are_queries
        ),
        *tensors,
    )
    return (*pull(cotangent), None, None)


_by_kernel.defvjp(_forward_by_kernel, _backward_by_xla)


def _by_xla(q, k, v, terms, query_positions, key_lengths, mask, scale, keys_are_queries):
    if not keys_are_queries:
        return _over_cache(q, k, v, terms, query_positions, key_lengths, mask, scale)
    length = q.shape[1]
    causal = mask.kind != "bidirectional"
    segment = -(-length // _SEGMENTS) if causal and length >= _LONG else length
    outputs = []
    for start in range(0, length, segment):
        stop = min(start + segment, length)
        seen = stop if causal else k.shape[2]
        outputs.append(
            _in_blocks(
                q[:, start:stop],
                k[:, :, :seen],
                v[:, :, :, :seen],
                terms,
                query_positions[:, start:stop],
                key_lengths,
                mask,
                scale,
            )
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _over_cache(q, k, v, terms, query_positions, key_lengths, mask, scale):
    """Attention over rows of keys in the order in which pages are attended to."""
    n_keys = k.shape[2]
    n_blocks = -(-n_keys // KEYS_AT_ONCE)
    if n_keys % KEYS_AT_ONCE:
        missing = (0, n_blocks * KEYS_AT_ONCE - n_keys)
        k = jnp.pad(k, ((0, 0), (0, 0), missing, (0, 0)))
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), missing))

    def load(i):
        start = i * KEYS_AT_ONCE
        keys = jax.lax.dynamic_slice_in_dim(k, start, KEYS_AT_ONCE, axis=2)
        values = jax.lax.dynamic_slice_in_dim(v, start, KEYS_AT_ONCE, axis=3)
        return keys, values.swapaxes(2, 3)

    return blockwise_attention(
        q,
        load,
        KEYS_AT_ONCE,
        query_positions=query_positions,
        key_lengths=key_lengths,
        mask=mask,
        scale=scale,
        terms=terms,
        n_blocks=n_blocks,
    )


def _in_blocks(q, k, v, terms, query_positions, key_lengths, mask, scale):
    """Attention for as many queries at a time as `_MAX_SCORES` allows, one block after another."""
    batch, length, n_heads, head_dim = q.shape
    block = max(16, _MAX_SCORES // (batch * n_heads * k.shape[2]))
    if length <= block:
        return _attend(q, k, v, terms, query_positions, key_lengths, mask, scale)
    n_blocks = -(-length // block)
    padding = n_blocks * block - length
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(query_positions, ((0, 0), (0, padding)), constant_values=-1)
    out = jax.lax.map(
        lambda part: _attend(part[0], k, v, terms, part[1], key_lengths, mask, scale),
        (
            q.reshape(batch, n_blocks, block, n_heads, head_dim).swapaxes(0, 1),
            positions.reshape(batch, n_blocks, block).swapaxes(0, 1),
        ),
    )
    return out.swapaxes(0, 1).reshape(batch, -1, n_heads, head_dim)[:, :length]


def _attend(q, k, v, terms, query_positions, key_lengths, mask, scale):
    batch, length, n_heads, head_dim = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    group = n_heads // n_kv

    copies = 1
    if q.dtype == jnp.float32:  # so that the softmax below is always computed in one way
        copies = copies_for(batch * length * n_heads * n_keys)
    if copies > 1:
        q = jax.lax.optimization_barrier(repeated(q, copies, 1))
        query_positions = repeated(query_positions, copies, 1)
        length *= copies

    # Rows of the products: one per (token, head of the group).
    rows = q.reshape(batch, length, n_kv, group, head_dim).transpose(0, 2, 1, 3, 4)
    scores = rows_product(rows.reshape(batch, n_kv, length * group, head_dim), k)
    scores = scores.reshape(batch, n_kv, length, group, n_keys) * jnp.float32(scale)
    by_head = lambda x: x.reshape(1, n_kv, 1, group, 1).astype(jnp.float32)  # noqa: E731

    keys = jnp.arange(n_keys, dtype=query_positions.dtype)
    if terms.softcap:
        scores = jnp.float32(terms.softcap) * jnp.tanh(scores / jnp.float32(terms.softcap))
    if terms.slopes is not None:
        distance = (keys[None, None, :] - query_positions[:, :, None])[:, None, :, None, :]
        scores = scores + by_head(terms.slopes) * distance.astype(jnp.float32)
    visible = allowed(mask, query_positions[:, :, None], keys[None, None, :])
    visible &= keys[None, None, :] < key_lengths[:, None, None]
    visible = visible[:, None, :, None, :]
    # A finite floor: a row without visible keys must not become NaN (its weights are zeroed).
    scores = jnp.where(visible, scores, jnp.float32(-1e30))
    best = jnp.max(scores, axis=-1, keepdims=True)
    sinks = None
    if terms.sinks is not None:
        sinks = jnp.broadcast_to(by_head(terms.sinks), best.shape)
        best = jnp.maximum(best, sinks)
    # Any constant in its place gives the same result, so it has no part in the gradient: that of a
    # maximum is NaN where XLA computes the scores anew and none of them equals it.
    best = jax.lax.stop_gradient(best)
    weights = jnp.where(visible, jnp.exp(scores - best), jnp.float32(0))
    total = row_sum(weights)
    if sinks is not None:
        own = exp_below_best(sinks.reshape(-1, 1), best.reshape(-1, 1))
        total = total + own.reshape(total.shape)

    rows = weights.reshape(batch, n_kv, length * group, n_keys)
    out = rows_product(rows.astype(v.dtype), v)
    out = out.reshape(batch, n_kv, length, group, head_dim)
    # By the reciprocal: XLA turns the division into that or not, depending on the shape.
    out = out * (1.0 / jnp.maximum(total, jnp.float32(1e-30)))
    out = out.transpose(0, 2, 1, 3, 4).reshape(batch, length, n_heads, head_dim)
    if copies > 1:
        out = jax.lax.optimization_barrier(out)[:, : length // copies]
    return out.astype(q.dtype)
