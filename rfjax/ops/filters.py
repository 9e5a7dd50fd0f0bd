"""Which tokens may be drawn: min-p, top-k, typical-p and top-p, in this order.

Each looks at what the one before left, renormalised, and leaves at least one token. Ties of the
last token kept stay (vLLM and llama.cpp keep of them what their sort puts first). Probabilities
are summed in units of 2^-30, as integers: see `rfjax.ops.cutoff`.
"""

import jax
import jax.numpy as jnp

from rfjax.ops.cutoff import above_cutoff, order_of
from rfjax.ops.reduce import exp_below_best, row_sum
from rfjax.typing import Array, Bool, Float, Int

_UNITS = 1 << 30
"""Into how many parts a row's probability is split: a sum fits in int32 whatever is rounded up."""


def keep_min_p(
    scaled: Float[Array, "B V"], kept: Bool[Array, "B V"], min_p: Float[Array, " B"]
) -> Bool[Array, "B V"]:
    """Tokens with at least `min_p` times the probability of the best one; 0 keeps all.

    Args:
        scaled: logits below the best one's (which is 0), divided by the temperature.
        kept: the tokens left so far.
    """
    return kept & (_likelihood(scaled) >= min_p[:, None])


def keep_top_k(
    logits: Float[Array, "B V"], kept: Bool[Array, "B V"], top_k: Int[Array, " B"]
) -> Bool[Array, "B V"]:
    """The `top_k` best tokens; 0, less, or the whole vocabulary keeps all."""
    off = ~uses_top_k(top_k, logits.shape[-1])
    order = order_of(jnp.where(kept, logits, -jnp.inf))
    target = jnp.where(off, 1, top_k)
    best = above_cutoff(order, jnp.ones_like(order), target)
    return kept & (best | off[:, None])


def keep_typical(
    scaled: Float[Array, "B V"], kept: Bool[Array, "B V"], typical_p: Float[Array, " B"]
) -> Bool[Array, "B V"]:
    """The tokens of nearest to expected surprise that have this probability together; 1: all.

    Surprise is `-log p`, and its expectation the entropy. Both contain the logarithm of the same
    sum, so that their distance is that of `scaled` from its mean. Source: Meister et al.,
    "Locally Typical Sampling" (2022).
    """
    likelihood = jnp.where(kept, _likelihood(scaled), 0.0)
    below = jnp.where(likelihood > 0, -scaled, 0.0)
    mean = row_sum(likelihood * below) * (1.0 / row_sum(likelihood))
    distance = jnp.where(kept, jnp.abs(-scaled - mean), jnp.inf)
    mass = _mass(likelihood)
    nearest = above_cutoff(order_of(-distance), mass, _target(mass, typical_p))
    return kept & (nearest | (typical_p >= 1)[:, None])


def keep_top_p(
    logits: Float[Array, "B V"],
    scaled: Float[Array, "B V"],
    kept: Bool[Array, "B V"],
    top_p: Float[Array, " B"],
) -> Bool[Array, "B V"]:
    """The smallest set of best tokens that have this probability together; 1 keeps all.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    mass = _mass(jnp.where(kept, _likelihood(scaled), 0.0))
    order = order_of(jnp.where(kept, logits, -jnp.inf))
    best = above_cutoff(order, mass, _target(mass, top_p))
    return kept & (best | (top_p >= 1)[:, None])


def uses_top_k(top_k: Int[Array, " B"], vocab: int) -> Bool[Array, " B"]:
    """Whether each row's top-k leaves anything out."""
    return (top_k > 0) & (top_k < vocab)


def _likelihood(scaled: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Probabilities as shares of the best one's."""
    return exp_below_best(scaled, jnp.zeros((scaled.shape[0], 1), jnp.float32))


def _mass(likelihood: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """Probabilities in units of 2^-30, rounded to the nearest."""
    units = jnp.float32(_UNITS) / row_sum(likelihood)
    # Held apart: a cutoff looks at the same integers again and again.
    return jax.lax.optimization_barrier(jnp.round(likelihood * units).astype(jnp.int32))


def _target(mass: Int[Array, "B V"], share: Float[Array, " B"]) -> Int[Array, " B"]:
    """That share of each row's mass, at least one unit."""
    total = jnp.sum(mass, axis=-1, dtype=jnp.int32)
    wanted = jnp.ceil(share * total.astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(wanted, 1, total)
