"""Attention of one new token a row, from its projections to the written cache."""

from typing import Literal

import jax.numpy as jnp

from rfjax.cache.dense import LayerCache, append
from rfjax.ops.attention import attention
from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.mask import Mask
from rfjax.ops.norm import rms_norm
from rfjax.ops.rope import apply_rope
from rfjax.ops.scores import NO_TERMS, ScoreTerms
from rfjax.typing import Array, Float, Int


def decode_attention(
    q: Float[Array, "B Nq H"],
    k: Float[Array, "B K H"] | None,
    v: Float[Array, "B K H"] | None,
    cache: LayerCache,
    cos: Float[Array, "B half"],
    sin: Float[Array, "B half"],
    *,
    positions: Int[Array, " B"],
    key_lengths: Int[Array, " B"],
    mask: Mask,
    scale: float,
    pairing: Literal["interleaved", "half"],
    eps: float,
    q_norm: Float[Array, " H"] | None = None,
    k_norm: Float[Array, " H"] | None = None,
    q_multiplier: Float[Array, " B"] | None = None,
    terms: ScoreTerms = NO_TERMS,
    policy: KernelPolicy | None = None,
) -> tuple[Float[Array, "B NH"], LayerCache]:
    """Normalise and rotate the new heads, write keys and values, and attend to the cache.

    The plain-JAX form is the composition of `rms_norm`, `apply_rope`, `append` and `attention`; the
    kernel `decode_attention` does it in one or two launches, without rounding in between, and
    updates a donated cache in place. The result has the dtype of `q`.

    Args:
        q: queries as projected; with `k` and `v` None, one projection's N + 2K heads: queries, keys
            and values.
        cache: keys and values before the token; any content from the positions on.
        cos, sin: of the positions (see `rfjax.ops.rope.rope_tables`, and `identity_tables` of the
            same module for heads that are not rotated here).
        positions: of the new tokens; a row at -1 writes nothing, and what it returns does not
            matter (the kernel gives zeros, plain JAX does under causal masks).
        key_lengths: `positions + 1` of rows that are not at -1.
        eps: of the norms, with weights `q_norm` and `k_norm` over each head before its rotation.
        q_multiplier: of each row's rotated queries, f32.
        terms: what is done to scores besides scaling and masking; the kernel takes none.
        policy: whether the kernel may run it; None takes plain JAX.

    Raises:
        UnsupportedError: the policy asks for kernels by name and this one declines.
    """

    def declines(target):
        from rfjax.pallas import decode_attention as kernel

        return kernel.declines(q, cache.k, cache.v, cos.shape[1], scale, terms)

    target = kernel_target(policy, "decode_attention", declines)
    if target is not None:
        from rfjax.pallas import decode_attention as kernel

        out, keys, values = kernel.decode_attention(
            q,
            k,
            v,
            cache.k,
            cache.v,
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
            target=target,
        )
        return out.reshape(out.shape[0], -1), LayerCache(k=keys, v=values)

    if k is None or v is None:
        n_kv = cache.k.shape[1]
        n_heads = q.shape[1] - 2 * n_kv
        q, k, v = q[:, :n_heads], q[:, n_heads : n_heads + n_kv], q[:, n_heads + n_kv :]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    q, k = apply_rope(q, cos, sin, pairing), apply_rope(k, cos, sin, pairing)
    if q_multiplier is not None:
        q = (q.astype(jnp.float32) * q_multiplier[:, None, None]).astype(q.dtype)
    cache = append(cache, k[:, None], v[:, None], positions[:, None])
    out = attention(
        q[:, None],
        cache.k,
        cache.v,
        query_positions=positions[:, None],
        key_lengths=key_lengths,
        mask=mask,
        scale=scale,
        terms=terms,
    )
    return out.reshape(out.shape[0], -1), cache
