"""Choosing the next token on the device: one compiled program for every mixture of parameters."""

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.typing import Array, Bool, Float, Int


@struct.dataclass
class SamplingState:
    """Per-sequence sampling parameters, as arrays.

    A temperature of 0 is greedy; a top_k of 0, a top_p of 1, a min_p of 0 and a repetition
    penalty of 1 switch each filter off.
    """

    temperature: Array  # f32 [B]
    top_k: Array  # int32 [B]
    top_p: Array  # f32 [B]
    min_p: Array  # f32 [B]
    repetition_penalty: Array  # f32 [B]
    seed: Array  # uint32 [B]
    seen: Array  # bool [B, V]: tokens of the prompt and of the output so far


def penalize(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones by it.

    Source: Keskar et al., "CTRL" (2019), in the form that divides logits.
    """
    factor = penalty[:, None]
    penalized = jnp.where(logits > 0, logits / factor, logits * factor)
    return jnp.where(seen, penalized, logits)


def filter_logits(
    logits: Float[Array, "B V"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
) -> Float[Array, "B V"]:
    """Set to -inf what min-p, then top-k, then top-p leave out; the best token always stays.

    min-p keeps tokens with at least `min_p` times the best one's probability. top-k keeps the k
    best (and ties of the k-th). top-p keeps the smallest set of best tokens, of those left, whose
    probabilities sum to at least `top_p` (and ties of the last). Source of top-p: Holtzman et
    al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    vocab = logits.shape[-1]
    best = jnp.max(logits, axis=-1, keepdims=True)
    floor = jnp.where(min_p > 0, jnp.log(jnp.maximum(min_p, 1e-38)), -jnp.inf)
    logits = jnp.where(logits >= best + floor[:, None], logits, -jnp.inf)

    def by_rank(logits):
        ranked = -jnp.sort(-logits, axis=-1)
        k = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
        rank = jnp.arange(vocab, dtype=k.dtype)[None, :]
        kept = jnp.where(rank < k[:, None], ranked, -jnp.inf)
        probabilities = jax.nn.softmax(kept, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # A top_p of 1 by its value: the rounded sum of the others reaches 1 before the last token.
        in_mass = (before < top_p[:, None]) | (top_p[:, None] >= 1)
        kept = jnp.where(in_mass | (rank == 0), kept, jnp.inf)
        kept = jnp.where(kept == -jnp.inf, jnp.inf, kept)
        cutoff = jnp.min(kept, axis=-1, keepdims=True)
        return jnp.where(logits >= cutoff, logits, -jnp.inf)

    needed = jnp.any((top_k > 0) & (top_k < vocab)) | jnp.any(top_p < 1)
    return jax.lax.cond(needed, by_rank, lambda x: x, logits)


def sample(
    logits: Float[Array, "B V"], state: SamplingState, positions: Int[Array, " B"]
) -> Int[Array, " B"]:
    """The next token of every sequence, int32.

    Noise comes from `fold_in(key(seed), position)`, one key per sequence and position: a
    sequence's tokens do not depend on what else is in the batch. Drawing is by the Gumbel-max
    trick over the filtered logits.

    Args:
        positions: absolute position at which each chosen token will stand.
    """
    logits = penalize(logits.astype(jnp.float32), state.seen, state.repetition_penalty)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(logits):
        warm = jnp.where(state.temperature > 0, state.temperature, 1.0)
        # From the best one down: the smallest temperatures must not overflow upwards.
        below = logits - jnp.max(logits, axis=-1, keepdims=True)
        scaled = filter_logits(below / warm[:, None], state.top_k, state.top_p, state.min_p)

        def noise(seed, position):
            key = jax.random.fold_in(jax.random.key(seed), position)
            return jax.random.gumbel(key, (logits.shape[-1],), jnp.float32)

        drawn = jnp.argmax(scaled + jax.vmap(noise)(state.seed, positions), axis=-1)
        return jnp.where(state.temperature > 0, drawn.astype(jnp.int32), greedy)

    return jax.lax.cond(jnp.any(state.temperature > 0), draw, lambda _: greedy, logits)
