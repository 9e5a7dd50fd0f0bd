"""Attention over keys and values in pages, and its plain-JAX reference."""

import jax.numpy as jnp

from rfjax.cache.paged import PagedLayer, read_pages
from rfjax.ops.blockwise_attention import KEYS_AT_ONCE, blockwise_attention
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.mask import Mask
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.typing import Array, Float, Int


def paged_attention(
    q: Float[Array, "B L N H"],
    layer: PagedLayer,
    table: Int[Array, "B M"],
    *,
    query_positions: Int[Array, "B L"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    terms: ScoreTerms = NO_TERMS,
    policy: KernelPolicy | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention of rows of queries over their sequences' pages.

    Query head n reads kv head n // (N/K). Scores, softmax and sums are f32; the result has the
    dtype of `q`. A query that may see no key gets zeros. Pages behind all windows and places at or
    beyond the length may hold anything.

    Args:
        q: queries; rows may be pieces of one sequence, which then share its table.
        layer: the pages; the queries' own keys and values are in them already.
        table: of each row.
        query_positions: absolute position of each query; -1 marks padding.
        key_lengths: tokens of each row's sequence that are in the pages, at least up to the row's
            last query.
        mask: which of them a query sees.
        scale: multiplies the scores.
        terms: what else is done to them.
        policy: whether the kernel `paged_prefill_attention` may run it; None takes plain JAX.

    Raises:
        UnsupportedError: the policy asks for kernels by name and this one declines.
    """

    def declines(target):
        from rfjax.pallas import paged_prefill_attention as kernel

        return kernel.declines(q, layer.k, layer.v, scale, target)

    target = kernel_target(policy, "paged_prefill_attention", declines)
    if target is not None:
        from rfjax.pallas import paged_prefill_attention as kernel

        return kernel.paged_prefill_attention(
            q,
            layer.k,
            layer.v,
            table,
            query_positions=query_positions,
            key_lengths=key_lengths,
            mask=mask,
            scale=scale,
            terms=terms,
            k_scale=layer.k_scale,
            v_scale=layer.v_scale,
            target=target,
        )
    size = layer.page_size
    n_together = max(1, KEYS_AT_ONCE // size)

    def load(i):
        at = i * n_together + jnp.arange(n_together, dtype=jnp.int32)
        return read_pages(layer, jnp.take(table, at, axis=1, mode="clip"), q.dtype)

    return blockwise_attention(
        q,
        load,
        n_together * size,
        query_positions=query_positions,
        key_lengths=key_lengths,
        mask=mask,
        scale=scale,
        terms=terms,
    )
