"""Queries that grow with their position."""

import jax.numpy as jnp

from rfjax.models.attention_inputs import AttentionInputs
from rfjax.models.config import AttentionTemperature
from rfjax.typing import Array, Float


def growth(
    temperature: AttentionTemperature | None, inputs: AttentionInputs
) -> Float[Array, " T"] | None:
    """What multiplies each token's queries, f32; None for nothing."""
    if temperature is None:
        return None
    steps = (inputs.flat_positions // temperature.length).astype(jnp.float32)
    return 1.0 + jnp.log(steps + 1.0) * jnp.float32(temperature.scale)
