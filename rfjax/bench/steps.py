"""The compiled steps that are timed: a prompt, and generation without sampling."""

import jax
import jax.numpy as jnp

from rfjax.cache.dense import DenseCache
from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, project
from rfjax.models.params import Params
from rfjax.typing import Array, Float, Int


def prompt_step(
    params: Params,
    cache: DenseCache,
    tokens: Int[Array, "B L"],
    start: Int[Array, ""],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B D"], DenseCache]:
    """Hidden states of the last tokens of B rows at positions `start .. start + L - 1`."""
    batch, length = tokens.shape
    positions = start + jnp.arange(length, dtype=jnp.int32)
    inputs = AttentionInputs(
        positions=jnp.broadcast_to(positions[None, :], (batch, length)),
        key_lengths=jnp.full((batch,), start + length, jnp.int32),
    )
    hidden, cache_after = hidden_states(params, tokens.reshape(-1), inputs, cache, config=config)
    assert isinstance(cache_after, DenseCache)
    return hidden.reshape(batch, length, -1)[:, -1], cache_after


def generate(
    params: Params,
    cache: DenseCache,
    tokens: Int[Array, "B n"],
    start: Int[Array, ""],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B V"], DenseCache]:
    """n steps of one token a row each, in one loop on the device; logits of every step computed.

    What is fed is given: nothing is sampled. Returns the logits of the last step.
    """
    logits = jnp.zeros((tokens.shape[0], config.vocab_size), jnp.float32)

    def step(i, carry):
        _, cache = carry
        column = jax.lax.dynamic_slice_in_dim(tokens, i, 1, axis=1)
        hidden, cache = prompt_step(params, cache, column, start + i, config=config)
        # Carried, so that no step's logits can be left out.
        return project(params, hidden, config=config), cache

    return jax.lax.fori_loop(0, tokens.shape[1], step, (logits, cache))
