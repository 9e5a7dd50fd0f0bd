"""Products of few rows of activations through the kernels, and when that is possible."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.pallas import plain_matvec as plain
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.quantized_matvec import MAX_ROWS, quantized_matvec
from rfjax.pallas.target import Target
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.typing import Array, Float

KERNEL = "quantized_matvec"
"""Name of the kernel in policies and in `rfjax selfcheck`."""

PLAIN_KERNEL = "plain_matvec"
"""The same of that for plain weights."""

_PLAIN_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def target_of_product(rows: int, weight: Weight, policy: KernelPolicy) -> Target | None:
    """The target to trace the kernel for, or None where this product runs in plain JAX.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    reason = None
    if isinstance(weight, QTensor):
        kernel, most, type = KERNEL, MAX_ROWS, weight.type.name
        if weight.type not in LAYOUTS:
            reason = f"{type} has no packed layout that kernels read"
    else:
        kernel, most, type = PLAIN_KERNEL, plain.MAX_ROWS, _PLAIN_TYPES.get(weight.dtype.name)
        if type is None:
            reason = f"it takes no weights of dtype {weight.dtype.name}"
    if rows > most:
        reason = reason or f"it takes up to {most} rows of activations, and there are {rows}"
    name = kernel if type is None else f"{kernel}:{type}"
    return kernel_target(policy, name, lambda target: reason)


def with_xla_gradient(kernel: Callable, reference: Callable) -> Callable:
    """`kernel`, differentiated as `reference`: integer arithmetic has no derivative of its own."""

    @jax.custom_vjp
    def product(*args):
        return kernel(*args)

    def forward(*args):
        return kernel(*args), args

    def backward(args, cotangents):
        return jax.vjp(reference, *args)[1](cotangents)

    product.defvjp(forward, backward)
    return product


def packed_products(
    x: Float[Array, "M K"],
    norm: Float[Array, " K"] | None,
    eps: float,
    weights: Sequence[QTensor],
    biases: Sequence[Array | None],
    residual: Float[Array, "M N"] | None,
    activation: Callable | None,
    out_dtype: jnp.dtype,
    *,
    reference: Callable,
    target: Target,
) -> list[Array]:
    """Results of `quantized_matvec` on packed, and first RMS-normalised, activations.

    Args:
        reference: the same function of `(x, norm, weights, biases, residual)` in plain JAX.
    """

    def kernel(x, norm, weights, biases, residual):
        packed = pack_activations(x, norm=norm, eps=eps, target=target)
        results = quantized_matvec(
            packed,
            weights,
            biases=biases,
            residual=residual,
            gated=activation,
            out_dtype=out_dtype,
            target=target,
        )
        return list(results)  # as the reference gives them

    product = with_xla_gradient(kernel, reference)
    return product(x, norm, list(weights), list(biases), residual)


def plain_products(
    x: Float[Array, "M K"],
    weights: Sequence[Float[Array, "N K"]],
    biases: Sequence[Array | None],
    residual: Float[Array, "M N"] | None,
    activation: Callable | None,
    out_dtype: jnp.dtype,
    *,
    reference: Callable,
    target: Target,
) -> list[Array]:
    """Results of `plain_matvec`.

    Args:
        reference: the same function of `(x, weights, biases, residual)` in plain JAX.
    """

    def kernel(x, weights, biases, residual):
        return plain.plain_matvec(
            x,
            weights,
            biases=biases,
            residual=residual,
            gated=activation,
            out_dtype=out_dtype,
            target=target,
        )

    return with_xla_gradient(kernel, reference)(x, list(weights), list(biases), residual)
