"""What is done to products of queries and keys until they are exponents of two."""

import jax.numpy as jnp

from rfjax.pallas.exponential import LOG2_E
from rfjax.pallas.softcap import softcapped
from rfjax.pallas.target import Target
from rfjax.typing import Array, Float, Int


def score_exponents(
    products: Float[Array, "*S"],
    scale: float,
    softcap: float,
    biases: tuple[Float[Array, "*S"], Int[Array, "*S"]] | None,
    target: Target,
) -> tuple[Float[Array, "*S"], float]:
    """Scores, and what they are still to be multiplied by (see `rfjax.ops.scores.ScoreTerms`).

    The factor is left to the softmax, which can fuse it with its subtraction.

    Args:
        scale: of the products.
        softcap: 0 for none.
        biases: ALiBi's slopes times `LOG2_E`, and the keys' positions less the queries', both
            broadcasting against the products; None for none.
    """
    factor = scale
    if softcap:
        products, factor = softcapped(products, scale, softcap, target), 1.0
    factor *= LOG2_E
    if biases is None:
        return products, factor
    slopes, distances = biases
    return products * factor + slopes * distances.astype(jnp.float32), 1.0
