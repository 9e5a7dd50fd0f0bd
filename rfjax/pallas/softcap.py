"""Scores that approach a bound, by the instructions for exponentials and reciprocals."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from rfjax.pallas.exponential import LOG2_E, exp2
from rfjax.pallas.target import Target
from rfjax.typing import Array, Float

_RECIPROCAL = {
    "cuda": ("rcp.approx.ftz.f32 $0, $1;", "=f,f"),
    "gfx9": ("v_rcp_f32 $0, $1", "=v,v"),
    "gfx11": ("v_rcp_f32 $0, $1", "=v,v"),
}


def softcapped(
    scores: Float[Array, "*S"], scale: float, cap: float, target: Target
) -> Float[Array, "*S"]:
    """`cap * tanh(scale * scores / cap)`, elementwise in f32, within 3e-7 of the cap.

    `tanh(x) = 1 - 2 / (1 + e^2x)`, which needs no case for large `x`: the power becomes infinite
    or 0. The library's function takes about thirty instructions an element.
    """
    power = exp2(scores * (2 * LOG2_E * scale / cap), target)
    return cap - (2 * cap) * _reciprocal(1.0 + power, target)


def _reciprocal(x: Float[Array, "*S"], target: Target) -> Float[Array, "*S"]:
    if target == "interpret" or x.ndim == 0:  # inline assembly takes no scalars
        return 1.0 / x
    asm, constraints = _RECIPROCAL[target]
    shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return plt.elementwise_inline_asm(
        asm, args=[x], constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )[0]
