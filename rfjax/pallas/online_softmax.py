"""The softmax of scores that come block by block.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

import jax.numpy as jnp

from rfjax.pallas.exponential import exp2
from rfjax.pallas.target import Target
from rfjax.typing import Array, Bool, Float

FLOOR = -1e30
"""The best score before any is seen: finite, so that its difference to itself is a number."""


def weigh(
    scores: Float[Array, "*R S"],
    best: Float[Array, "*R"],
    scale: float,
    visible: Bool[Array, "*R S"] | None,
    target: Target,
    axis: int = -1,
) -> tuple[Float[Array, "*R S"], Float[Array, "*R"], Float[Array, "*R"]]:
    """Weights of one block's scores, the best score so far, and what shrinks earlier sums.

    `weights = 2 ** (scale * scores - best)`. Where a row has seen nothing yet and sees nothing in
    this block, its weights are 1 and the best stays at `FLOOR`: its sums mean nothing, and
    shrink to 0 with the first score that it does see.

    Args:
        best: scaled by `scale`, `FLOOR` at first.
        scale: positive; the softmax's own, times `LOG2_E`.
        visible: which scores count, None for all.
        axis: along which the scores of one softmax lie.
    """
    if visible is None:
        higher = jnp.maximum(best, jnp.max(scores, axis=axis) * scale)
        exponents = scores * scale
    else:
        # The floor comes after the multiplication: fused with the subtraction below, that would
        # leave the rounding error of a product of 1e30, which is anything but 0.
        exponents = jnp.where(visible, scores * scale, jnp.float32(FLOOR))
        higher = jnp.maximum(best, jnp.max(exponents, axis=axis))
    wide = jnp.expand_dims(higher, axis) if higher.ndim else higher
    return exp2(exponents - wide, target), higher, exp2(best - higher, target)
