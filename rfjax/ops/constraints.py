"""Which tokens a user forbids or favours: allowed ids, biases, and no stop before its time."""

import jax.numpy as jnp

from rfjax.typing import Array, Bool, Float, Int, UInt32

_WORD = 32


def allow(logits: Float[Array, "B V"], allowed: UInt32[Array, "B words"]) -> Float[Array, "B V"]:
    """-inf where bit `token % 32` of word `token // 32` is 0."""
    vocab = logits.shape[-1]
    # Not `jnp.repeat`, whose indices XLA would compute for seconds while it compiles.
    words = jnp.broadcast_to(allowed[:, :, None], (*allowed.shape, _WORD))
    words = words.reshape(allowed.shape[0], -1)
    bit = jnp.arange(vocab, dtype=jnp.uint32) % _WORD
    return jnp.where((words[:, :vocab] >> bit[None, :]) & 1 == 1, logits, -jnp.inf)


def n_words(vocab: int) -> int:
    """Words of 32 bits that hold one bit a token."""
    return -(-vocab // _WORD)


def add_bias(
    logits: Float[Array, "B V"], ids: Int[Array, "B n"], values: Float[Array, "B n"]
) -> Float[Array, "B V"]:
    """Logits with these values added; each id once a row, -1 is padding."""
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    return logits.at[row, _or_beyond(ids, logits)].add(values, mode="drop")


def withhold(
    logits: Float[Array, "B V"], ids: Int[Array, "B n"], held: Bool[Array, " B"]
) -> Float[Array, "B V"]:
    """-inf at these ids in the rows held back; -1 is padding."""
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    ids = jnp.where(held[:, None], ids, -1)
    return logits.at[row, _or_beyond(ids, logits)].set(-jnp.inf, mode="drop")


def _or_beyond(ids: Int[Array, "B n"], logits: Float[Array, "B V"]) -> Int[Array, "B n"]:
    """Padding moved to where it is dropped: negative indices would count from the end."""
    return jnp.where(ids < 0, logits.shape[-1], ids)
