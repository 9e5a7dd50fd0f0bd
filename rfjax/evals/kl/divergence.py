"""How far models are from a base, token by token: pure functions for scripts of one's own."""

import jax.numpy as jnp

from rfjax.models.attention_inputs import whole_rows
from rfjax.models.config import ModelConfig
from rfjax.models.decoder import hidden_states, output_projection
from rfjax.models.params import Params
from rfjax.ops.divergence import Head, TokenDivergences, head_divergences
from rfjax.typing import Array, Float, Int


def divergences(
    base_params: Params,
    params: Params,
    tokens: Int[Array, "B L"],
    *,
    first: int,
    base_config: ModelConfig,
    config: ModelConfig,
) -> TokenDivergences:
    """A model beside its base, at the tokens `first + 1 .. L - 1` of every row.

    Rows are whole sequences from an empty context. Pure: compose it with `jax.jit(...,
    static_argnames=("first", "base_config", "config"))`, `jax.vmap` and `jax.grad` (the mean KLD
    is differentiable in `params`). Logits are never held for more than a few rows at a time; the
    divergence is over the whole vocabulary and good in f32 down to 1e-12
    (`rfjax.ops.divergence`). A model beside itself gives 0 within rounding: exactly 0 where
    XLA compiles both alike, as it mostly does.

    Args:
        base_params, base_config: of the base.
        params, config: of the model, whose vocabulary must be the base's. Nothing else has to be.
        tokens: ids.
        first: the last position that is not compared; the first that is predicted is the next.

    Returns:
        f32 and bool `[B, L - 1 - first]`.
    """
    (found,) = many_divergences(
        base_params, (params,), tokens, first=first, base_config=base_config, configs=(config,)
    )
    return found


def many_divergences(
    base_params: Params,
    params: tuple[Params, ...],
    tokens: Int[Array, "B L"],
    *,
    first: int,
    base_config: ModelConfig,
    configs: tuple[ModelConfig, ...],
) -> tuple[TokenDivergences, ...]:
    """`divergences` of several models in one program, in which the base is computed once."""
    batch, length = tokens.shape
    base_hidden = scored_states(base_params, tokens, first=first, config=base_config)
    hidden = tuple(
        scored_states(own, tokens, first=first, config=config)
        for own, config in zip(params, configs, strict=True)
    )
    found = head_divergences(
        head(base_params, base_config),
        tuple(head(own, config) for own, config in zip(params, configs, strict=True)),
        _flat(base_hidden),
        tuple(map(_flat, hidden)),
        tokens[:, first + 1 :].reshape(-1),
    )
    return tuple(_rows(each, batch, length - 1 - first) for each in found)


def divergences_of_states(
    base: Head,
    own: Head,
    base_hidden: Float[Array, "B n D"],
    hidden: Float[Array, "B n D"],
    targets: Int[Array, "B n"],
) -> TokenDivergences:
    """`divergences` from the final hidden states of both models (`scored_states`)."""
    (found,) = head_divergences(
        base, (own,), _flat(base_hidden), (_flat(hidden),), targets.reshape(-1)
    )
    return _rows(found, *targets.shape)


def scored_states(
    params: Params, tokens: Int[Array, "B L"], *, first: int, config: ModelConfig
) -> Float[Array, "B n D"]:
    """Final hidden states at the positions `first .. L - 2`, in the config's dtype."""
    batch, length = tokens.shape
    inputs = whole_rows(jnp.full((batch,), length, jnp.int32), length)
    hidden, _ = hidden_states(params, tokens.reshape(-1), inputs, None, config=config)
    return hidden.reshape(batch, length, -1)[:, first : length - 1]


def head(params: Params, config: ModelConfig) -> Head:
    """A model's output projection."""
    output = output_projection(params)
    return Head(output.weight, output.bias, config.logit_scale, config.final_softcap)


def _flat(hidden: Array) -> Array:
    return hidden.reshape(-1, hidden.shape[-1])


def _rows(found: TokenDivergences, batch: int, n: int) -> TokenDivergences:
    return TokenDivergences(
        nll=found.nll.reshape(batch, n),
        nll_base=found.nll_base.reshape(batch, n),
        kld=found.kld.reshape(batch, n),
        p_diff=found.p_diff.reshape(batch, n),
        same_top=found.same_top.reshape(batch, n),
    )
