"""Log-probabilities of tokens in whole rows: a pure function for scripts of one's own."""

import jax.numpy as jnp

from rfjax.models.attention_inputs import whole_rows
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, output_projection
from rfjax.models.params import Params
from rfjax.ops.likelihood import token_scores
from rfjax.typing import Array, Bool, Float, Int


def score(
    params: Params,
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    config: ModelConfig,
    first: int = 0,
) -> Float[Array, "B L"]:
    """`log p(token | those before it in its row)`, f32, in nats, where `mask` is True; 0 elsewhere.

    Rows are sequences from an empty context; shorter ones are padded at the end with any ids,
    where the mask is False. Pure: compose it with `jax.jit(..., static_argnames=("config",
    "first"))`, `jax.vmap`, `jax.grad` and `jax.shard_map`. Logits are never held for more than a
    few rows at a time.

    Args:
        params: of the model.
        tokens: ids.
        mask: which tokens are scored.
        config: of the model.
        first: tokens at positions up to this one are not scored, whatever the mask says, and cost
            no projection; a row's token 0 never is.
    """
    batch, length = tokens.shape
    if length < first + 2:
        return jnp.zeros((batch, length), jnp.float32)
    inputs = whole_rows(jnp.full((batch,), length, jnp.int32), length)
    hidden, _ = hidden_states(params, tokens.reshape(-1), inputs, None, config=config)
    hidden = hidden.reshape(batch, length, -1)[:, first : length - 1]
    output = output_projection(params)
    scores = token_scores(
        hidden.reshape(-1, hidden.shape[-1]),
        output.weight,
        output.bias,
        tokens[:, first + 1 :].reshape(-1),
        scale=config.logit_scale,
        softcap=config.final_softcap,
    )
    logprobs = scores.logprobs.reshape(batch, length - 1 - first)
    logprobs = jnp.pad(logprobs, ((0, 0), (first + 1, 0)))
    return jnp.where(mask, logprobs, jnp.float32(0))
