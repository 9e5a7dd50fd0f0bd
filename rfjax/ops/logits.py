"""What is done to logits after the output projection."""

import jax.numpy as jnp

from rfjax.typing import Array, Float


def finished(
    logits: Float[Array, "*B V"], scale: float = 1.0, softcap: float = 0.0
) -> Float[Array, "*B V"]:
    """Logits times `scale`, bent to lie within `softcap`: `softcap * tanh(logits / softcap)`.

    Source of the bending: Gemma Team, "Gemma 2" (2024). 0 bends nothing.
    """
    if scale != 1.0:
        logits = logits * jnp.float32(scale)
    if softcap:
        logits = jnp.tanh(logits / jnp.float32(softcap)) * jnp.float32(softcap)
    return logits
