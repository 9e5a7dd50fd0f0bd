"""A model's norms: those that stand by themselves, and those that a product's kernel does."""

from rfjax.models.config import ModelConfig
from rfjax.models.params import Norm
from rfjax.ops import linear
from rfjax.ops.norm import normalize
from rfjax.typing import Array


def normalized(x: Array, norm: Norm, config: ModelConfig) -> Array:
    """`x` in the model's kind of norm, over the axes of the norm's weights (at least the last)."""
    return normalize(x, norm.weight, norm.bias, config.norm_eps, config.norm)


def before_product(
    x: Array, norm: Norm | None, config: ModelConfig
) -> tuple[Array, linear.Norm | None]:
    """What a product takes for the norm of `x`: `x` and a norm to apply first, which a kernel does
    without writing it out, or the normalised `x` and nothing more to do."""
    if norm is None:
        return x, None
    if config.norm == "rms" and norm.weight is not None and norm.bias is None:
        return x, linear.Norm(norm.weight, config.norm_eps)
    return normalized(x, norm, config), None
