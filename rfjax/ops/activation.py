"""Activation functions of gated feed-forward networks, by the names the architecture table uses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": jax.nn.silu}


def gated(
    gate: Float[Array, "*B F"], up: Float[Array, "*B F"], activation: str
) -> Float[Array, "*B F"]:
    """`activation(gate) * up`, computed in f32, returned in the dtype of `gate`.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    act = ACTIVATIONS[activation]
    return (act(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)
