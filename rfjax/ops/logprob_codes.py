"""Log-probabilities in 16 bits, as llama-perplexity keeps those of a base.

A row is two f32 numbers, `scale` and `least`, as four codes of 16 bits, then a code u for each
token, whose log-probability is about `scale * u + least`, and a 0 where that makes the row even.
What is more than 16 nats below the most likely token reads as 16 below. So a row's probabilities
do not quite sum to one, and each is off by up to `scale / 2`, at most 1.2e-4 nats.
"""

import jax
import jax.numpy as jnp

from rfjax.ops.divergence import TokenDivergences
from rfjax.ops.logprobs import normalizer, of_tokens
from rfjax.ops.reduce import row_sum
from rfjax.typing import Array, Float, Int, UInt16

_RANGE = 16.0
"""Nats below the most likely token that can be told apart."""

_HIGHEST = 65535.0


def encoded(logits: Float[Array, "T V"]) -> UInt16[Array, "T W"]:
    """Rows of codes of f32 logits; halves are rounded to even."""
    norm = normalizer(logits)
    least = jnp.maximum(jnp.min(logits, axis=-1, keepdims=True), norm.best - _RANGE)
    scale = (norm.best - least) / _HIGHEST
    flat = scale == 0
    steps = jnp.round((logits - least) * (1 / jnp.where(flat, 1, scale)))
    codes = jnp.where((logits > least) & ~flat, steps, 0).astype(jnp.uint16)
    numbers = jnp.concatenate([scale, least - norm.best - norm.log_total], axis=-1)
    head = jax.lax.bitcast_convert_type(numbers, jnp.uint16).reshape(-1, 4)
    return jnp.pad(jnp.concatenate([head, codes], axis=-1), ((0, 0), (0, logits.shape[-1] % 2)))


def decoded(codes: UInt16[Array, "T W"], vocab: int) -> Float[Array, "T V"]:
    """Log-probabilities of rows of codes, f32, in nats."""
    numbers = jax.lax.bitcast_convert_type(codes[:, :4].reshape(-1, 2, 2), jnp.float32)
    return numbers[:, :1] * codes[:, 4 : 4 + vocab].astype(jnp.float32) + numbers[:, 1:]


def coded_divergences(
    codes: UInt16[Array, "T W"], logits: Float[Array, "T V"], targets: Int[Array, " T"]
) -> TokenDivergences:
    """Rows of f32 logits beside a base's codes, counted as llama-perplexity counts.

    Tokens whose base log-probability is at most -16 are left out of the divergence. What the codes
    lack of a probability of one is not made up for, so that a divergence can come out below 0.
    """
    base = decoded(codes, logits.shape[-1])
    logq = normalizer(logits).logprobs(logits)
    terms = jnp.where(base > -_RANGE, jnp.exp(base) * (base - logq), 0.0)
    chosen_base = jnp.take_along_axis(base, targets[:, None], axis=-1)[:, 0]
    chosen = of_tokens(logits, targets, normalizer(logits))
    return TokenDivergences(
        nll=-chosen,
        nll_base=-chosen_base,
        kld=row_sum(terms)[:, 0],
        p_diff=jnp.exp(chosen) - jnp.exp(chosen_base),
        same_top=jnp.argmax(base, axis=-1) == jnp.argmax(logits, axis=-1),
    )
