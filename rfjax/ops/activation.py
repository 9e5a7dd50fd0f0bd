"""Activation functions of feed-forward networks, by the names the architecture table uses.

All are elementwise, computed in f32, and made of what kernels can compute too: exponentials,
maxima and products. Only the exact GELU is not.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from rfjax.typing import Array, Float

Gate = Callable[[Array, Array], Array]
"""What is made of a gate and of the result beside it, both f32."""

_OAI_SLOPE = 1.702
_OAI_LIMIT = 7.0


def _gelu(x: Array) -> Array:
    """By its approximation with tanh: `(1 + tanh(z)) / 2` is the logistic function of `2 z`.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
    """
    # The maximum changes nothing; XLA would fuse product and sum for some shapes only.
    cubic = jnp.maximum(0.044715 * x * x, 0.0)
    z = math.sqrt(2 / math.pi) * x * (1.0 + cubic)
    return x * jax.nn.sigmoid(2.0 * z)


def _gelu_erf(x: Array) -> Array:
    return 0.5 * x * jax.lax.erfc(-math.sqrt(0.5) * x)


def _relu(x: Array) -> Array:
    return jnp.maximum(x, 0.0)


def _relu_squared(x: Array) -> Array:
    """Source: So et al., "Primer" (2021)."""
    positive = jnp.maximum(x, 0.0)
    return positive * positive


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "silu": jax.nn.silu,
        "gelu": _gelu,
        "gelu_erf": _gelu_erf,
        "relu": _relu,
        "relu_squared": _relu_squared,
    }
)
"""Functions of one number: of a network without a gate, or of the gate, whose result then
multiplies what is beside it."""


def _of_gate(function: Callable[[Array], Array]) -> Gate:
    return lambda gate, up: function(gate) * up


def _swiglu_oai(gate: Array, up: Array) -> Array:
    """SwiGLU of limited numbers, with 1 added beside the gate. Source: OpenAI's gpt-oss."""
    gate = jnp.minimum(gate, _OAI_LIMIT)
    up = jnp.minimum(jnp.maximum(up, -_OAI_LIMIT), _OAI_LIMIT)
    return gate * jax.nn.sigmoid(_OAI_SLOPE * gate) * (up + 1.0)


GATES: Mapping[str, Gate] = MappingProxyType(
    {**{name: _of_gate(f) for name, f in ACTIVATIONS.items()}, "swiglu_oai": _swiglu_oai}
)
"""Functions of two numbers, of a gated network: every one of `ACTIVATIONS`, and those that are
not a product with one."""

IN_KERNELS = frozenset(GATES) - {"gelu_erf"}
"""The gates that kernels can compute: the error function is not among their operations."""


_LARGEST_HALVES = 10.0


@jax.custom_jvp
def _gelu_of_halves(x: Array) -> Array:
    """GELU as ggml computes it on CPUs, whose numbers are the measure of ours: by a table of f16.

    Argument and result are rounded to f16 between -10 and 10; beyond, the result is 0 or the
    argument. Kernels do not round: they compute in 16 bits, or their error is stated.
    The derivative is that of GELU: a step has none, and a gradient as f16 would lose what is small.
    """
    rounded = _rounded_to_half(_gelu(_rounded_to_half(x)))
    outside = jnp.where(x <= -_LARGEST_HALVES, 0.0, x)
    return jnp.where(jnp.abs(x) < _LARGEST_HALVES, rounded, outside)


def _gelu_of_halves_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _gelu_of_halves(*primals), jax.jvp(_gelu, primals, tangents)[1]


_gelu_of_halves.defjvp(_gelu_of_halves_jvp)


def _rounded_to_half(x: Array) -> Array:
    """To f16's numbers, those without leading 1 included, which `reduce_precision` makes zeros."""
    # Not by conversion there and back, which XLA takes out.
    below = jnp.round(x * jnp.float32(2.0**24)) * jnp.float32(2.0**-24)
    return jnp.where(jnp.abs(x) < 2.0**-14, below, jax.lax.reduce_precision(x, 5, 10))


_PLAIN: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {**ACTIVATIONS, "gelu": _gelu_of_halves}
)
"""What plain JAX computes."""

_PLAIN_GATES: Mapping[str, Gate] = MappingProxyType({**GATES, "gelu": _of_gate(_gelu_of_halves)})

_WHOLE = 32
"""Numbers of a row that XLA's CPU backend surely computes as whole vectors."""


def gated(
    gate: Float[Array, "*B F"], up: Float[Array, "*B F"], activation: str
) -> Float[Array, "*B F"]:
    """`activation(gate) * up`, or what `GATES` has; computed in f32, in the dtype of `gate`.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    return _in_whole_vectors(_PLAIN_GATES[activation], gate, up)


def activate(x: Float[Array, "*B F"], activation: str) -> Float[Array, "*B F"]:
    """`activation(x)` of a network without a gate, computed in f32, in the dtype of `x`."""
    return _in_whole_vectors(_PLAIN[activation], x)


def _in_whole_vectors(function: Callable[..., Array], *operands: Array) -> Array:
    """`function` of the operands in f32, in the dtype of the first.

    What is left over of a vector XLA's CPU backend computes in another way, which differs in the
    last bit and depends on the number of rows: rows of odd widths are padded.
    """
    wide = [operand.astype(jnp.float32) for operand in operands]
    width = wide[0].shape[-1]
    missing = -width % _WHOLE
    if missing:
        # Behind barriers: XLA would compute the wanted elements only.
        edges = [(0, 0)] * (wide[0].ndim - 1) + [(0, missing)]
        wide = jax.lax.optimization_barrier([jnp.pad(operand, edges) for operand in wide])
        result = jax.lax.optimization_barrier(function(*wide))[..., :width]
    else:
        result = function(*wide)
    return result.astype(operands[0].dtype)
