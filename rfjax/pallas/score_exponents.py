"""What is done to products of queries and keys until they are exponents of two."""

from rfjax.pallas.exponential import LOG2_E
from rfjax.pallas.softcap import softcapped
from rfjax.pallas.target import Target
from rfjax.typing import Array, Float


def score_exponents(
    products: Float[Array, "*S"],
    scale: float,
    softcap: float,
    bias: Float[Array, "*S"] | None,
    target: Target,
) -> tuple[Float[Array, "*S"], float]:
    """Scores, and what they are still to be multiplied by (see `rfjax.ops.scores.ScoreTerms`).

    The factor is left to the softmax, which can fuse it with its subtraction.

    Args:
        scale: of the products.
        softcap: 0 for none.
        bias: ALiBi's, times `LOG2_E`, broadcasting against the products; None for none.
    """
    factor = scale
    if softcap:
        products, factor = softcapped(products, scale, softcap, target), 1.0
    factor *= LOG2_E
    return (products, factor) if bias is None else (products * factor + bias, 1.0)
