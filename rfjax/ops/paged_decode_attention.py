"""Attention of one new token a row over pages, from its projections to the written cache."""

from typing import Literal

import jax.numpy as jnp

from rfjax.cache.paged import PagedLayer, append_pages
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.mask import Mask
from rfjax.ops.norm import rms_norm
from rfjax.ops.paged_attention import paged_attention
from rfjax.ops.rope import apply_rope
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.typing import Array, Float, Int


def paged_decode_attention(
    q: Float[Array, "B Nq H"],
    k: Float[Array, "B K H"] | None,
    v: Float[Array, "B K H"] | None,
    layer: PagedLayer,
    table: Int[Array, "B M"],
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *,
    positions: Int[Array, " B"],
    mask: Mask,
    scale: float,
    pairing: Literal["interleaved", "half"],
    eps: float,
    q_norm: Float[Array, " H"] | None = None,
    k_norm: Float[Array, " H"] | None = None,
    q_multiplier: Float[Array, " B"] | None = None,
    terms: ScoreTerms = NO_TERMS,
    policy: KernelPolicy | None = None,
) -> tuple[Float[Array, "B NH"], PagedLayer]:
    """Normalise and rotate the new heads, write keys and values, and attend to the pages.

    The plain-JAX form is the composition of `rms_norm`, `apply_rope`, `append_pages` and
    `paged_attention`; the kernel does it in one or two launches, without rounding in between, and
    updates donated pages in place. The result has the dtype of `q`.

    Args:
        q: queries as projected; with `k` and `v` None, one projection's N + 2K heads: queries, keys
            and values.
        layer: keys and values before the token; anything from the positions on.
        table: of each row.
        cos, sin: of the positions (see `rfjax.ops.rope.rope_tables`).
        positions: of the new tokens; a row at -1 writes nothing and gets zeros.
        eps: of the norms, with weights `q_norm` and `k_norm` over each head before its rotation.
        q_multiplier: of each row's rotated queries, f32.
        terms: what is done to scores besides scaling and masking.
        policy: whether the kernel `paged_decode_attention` may run it; None takes plain JAX.

    Raises:
        UnsupportedError: the policy asks for kernels by name and this one declines.
    """
    pages = layer.k, layer.v, layer.k_scale, layer.v_scale

    def declines(target):
        from rfjax.pallas import paged_decode_attention as kernel

        return kernel.declines(q, pages, cos.shape[1], scale)

    target = kernel_target(policy, "paged_decode_attention", declines)
    if target is not None:
        from rfjax.pallas import paged_decode_attention as kernel

        out, pages = kernel.paged_decode_attention(
            q,
            k,
            v,
            pages,
            table,
            cos,
            sin,
            positions=positions,
            pairing=pairing,
            mask=mask,
            scale=scale,
            eps=eps,
            q_norm=q_norm,
            k_norm=k_norm,
            q_multiplier=q_multiplier,
            terms=terms,
            target=target,
        )
        return out.reshape(out.shape[0], -1), PagedLayer(*pages)
    if k is None or v is None:
        n_kv = layer.k.shape[1]
        n_heads = q.shape[1] - 2 * n_kv
        q, k, v = q[:, :n_heads], q[:, n_heads : n_heads + n_kv], q[:, n_heads + n_kv :]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    q, k = apply_rope(q, cos, sin, pairing), apply_rope(k, cos, sin, pairing)
    if q_multiplier is not None:
        q = (q.astype(jnp.float32) * q_multiplier[:, None, None]).astype(q.dtype)
    layer = append_pages(layer, table, k[:, None], v[:, None], positions[:, None])
    out = paged_attention(
        q[:, None],
        layer,
        table,
        query_positions=positions[:, None],
        key_lengths=positions + 1,
        mask=mask,
        scale=scale,
        terms=terms,
    )
    return out.reshape(out.shape[0], -1), layer
