"""Which tokens a sequence has had, and what that does to their logits.

Counts are held for all slots of the engine in one array, int32 [slots, V]: bits 0 to 29 count the
token in the output, bit 30 says that it is in the prompt.
"""

import jax.numpy as jnp

from rfjax.typing import Array, Bool, Float, Int

IN_PROMPT = 1 << 30
"""What a count is at least for a token of the prompt."""


def counts_of_tokens(
    counts: Int[Array, "slots V"],
    rows: Int[Array, " n"],
    prompt: Int[Array, "n T"],
    output: Int[Array, "n U"],
) -> Int[Array, "slots V"]:
    """The counts with these rows made anew, from the tokens of their prompt and output.

    Args:
        rows: int32, each slot once; a row outside of `[0, slots)` is left out.
        prompt: int32, padded with -1.
        output: int32, padded with -1: what a sequence had made before it was preempted.
    """
    n_slots, vocab = counts.shape
    rows = jnp.where(rows < 0, n_slots, rows)
    at = rows[:, None]
    counts = counts.at[rows].set(0, mode="drop")
    counts = counts.at[at, _or_beyond(prompt, vocab)].max(IN_PROMPT, mode="drop")
    return counts.at[at, _or_beyond(output, vocab)].add(1, mode="drop")


def counted(
    counts: Int[Array, "slots V"],
    rows: Int[Array, " B"],
    chosen: Int[Array, " B"],
    active: Bool[Array, " B"],
) -> Int[Array, "slots V"]:
    """The counts with one more of each active row's token."""
    rows = jnp.where(active & (rows >= 0), rows, counts.shape[0])
    return counts.at[rows, chosen].add(1, mode="drop")


def in_output(counts: Int[Array, "B V"]) -> Int[Array, "B V"]:
    """How often each token is in the output, int32."""
    return counts & (IN_PROMPT - 1)


def seen(counts: Int[Array, "B V"]) -> Bool[Array, "B V"]:
    """Whether each token is in the prompt or in the output."""
    return counts != 0


def penalize(
    logits: Float[Array, "B V"],
    counts: Int[Array, "B V"],
    repetition: Float[Array, " B"],
    frequency: Float[Array, " B"],
    presence: Float[Array, " B"],
) -> Float[Array, "B V"]:
    """Logits with the repetition, then the frequency and the presence penalty.

    Repetition: of tokens in prompt or output, positive logits are divided by it and negative ones
    multiplied (Keskar et al., "CTRL" (2019), in the form for logits). Frequency is subtracted once
    for each time a token is in the output, presence once if it is there at all (OpenAI's API).
    """
    factor = jnp.where(logits > 0, (1.0 / repetition)[:, None], repetition[:, None])
    logits = jnp.where(seen(counts), logits * factor, logits)
    times = in_output(counts)
    logits = logits - frequency[:, None] * times.astype(jnp.float32)
    return logits - jnp.where(times > 0, presence[:, None], 0.0)


def _or_beyond(ids: Int[Array, "n T"], vocab: int) -> Int[Array, "n T"]:
    """Padding moved to where it is dropped: negative indices would count from the end."""
    return jnp.where(ids < 0, vocab, ids)
