"""The device-resident state of a batch, and the two pure functions that advance it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rfjax.cache.dense import DenseCache
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, project
from rfjax.models.params import Params
from rfjax.ops.penalties import counted
from rfjax.ops.sampling import SamplingState, sample
from rfjax.typing import Array, Int


@struct.dataclass
class DecodeState:
    """B sequences in S slots each; token p of a sequence stands in slot p.

    The cache holds the keys and values of `lengths - 1` tokens a row: the last token known is
    the next step's input.
    """

    cache: DenseCache
    tokens: Array  # int32 [B, S]: prompt, then output
    logprobs: Array  # f32 [B, S]: of output tokens, under the model's own distribution
    lengths: Array  # int32 [B]: tokens known
    limits: Array  # int32 [B]: lengths at which to stop
    stop_ids: Array  # int32 [B, n]: tokens at which to stop, padded with -1
    finished: Array  # bool [B]
    sampling: SamplingState
    counts: Array  # int32 [B, V]: tokens of the prompt and of the output (rfjax.ops.penalties)


def prefill(
    params: Params,
    state: DecodeState,
    start: Int[Array, ""],
    *,
    length: int,
    config: ModelConfig,
) -> DecodeState:
    """Write keys and values of the tokens in slots `[start, start + length)`.

    The last token known of each row is left for the first decode step, and so is what a row does
    not have: no logits are computed here.
    """
    tokens = jax.lax.dynamic_slice_in_dim(state.tokens, start, length, axis=1)
    positions = start + jnp.arange(length, dtype=jnp.int32)[None, :]
    real = positions < (state.lengths - 1)[:, None]
    inputs = AttentionInputs(
        positions=jnp.where(real, positions, -1), key_lengths=state.lengths - 1
    )
    tokens = jnp.where(real, tokens, 0).reshape(-1)
    _, cache = hidden_states(params, tokens, inputs, state.cache, config=config)
    assert cache is not None
    return dataclasses.replace(state, cache=cache)


def decode_step(params: Params, state: DecodeState, *, config: ModelConfig) -> DecodeState:
    """One token more for every sequence that is not finished."""
    batch = jnp.arange(state.tokens.shape[0], dtype=jnp.int32)
    last = state.lengths - 1
    inputs = AttentionInputs(
        positions=jnp.where(state.finished, -1, last)[:, None], key_lengths=state.lengths
    )
    hidden, cache = hidden_states(
        params, state.tokens[batch, last], inputs, state.cache, config=config
    )
    assert cache is not None
    logits = project(params, hidden, config=config)
    sampled = sample(logits, state.sampling, state.counts, batch, state.lengths, n_top=0)
    chosen = sampled.token_ids

    slot = jnp.where(state.finished, state.tokens.shape[1], state.lengths)
    lengths = state.lengths + (~state.finished).astype(jnp.int32)
    stopped = jnp.any(chosen[:, None] == state.stop_ids, axis=1) | (lengths >= state.limits)
    return dataclasses.replace(
        state,
        cache=cache,
        tokens=state.tokens.at[batch, slot].set(chosen, mode="drop"),
        logprobs=state.logprobs.at[batch, slot].set(sampled.logprobs, mode="drop"),
        lengths=lengths,
        finished=state.finished | stopped,
        counts=counted(state.counts, batch, chosen, ~state.finished),
    )


def decode(
    params: Params, state: DecodeState, n_steps: Int[Array, ""], *, config: ModelConfig
) -> DecodeState:
    """Up to `n_steps` decode steps, or until every sequence is finished, without the host."""

    def unfinished(carry):
        step, state = carry
        return (step < n_steps) & ~jnp.all(state.finished)

    def advance(carry):
        step, state = carry
        return step + 1, decode_step(params, state, config=config)

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1]
