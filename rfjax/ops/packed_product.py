"""Products of few rows with packed weights through the kernels, and when that is possible."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.quantized_matvec import MAX_ROWS, quantized_matvec
from rfjax.pallas.target import Target
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.typing import Array, Float

KERNEL = "quantized_matvec"
"""Name of the kernel in policies and in `rfjax selfcheck`."""


def target_of_product(rows: int, weight: Weight, policy: KernelPolicy) -> Target | None:
    """The target to trace the kernel for, or None where this product runs in plain JAX.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """

    def declines(target: Target) -> str | None:
        del target
        if not isinstance(weight, QTensor):
            return "its weights are plain numbers"
        if weight.type not in LAYOUTS:
            return f"{weight.type.name} has no packed layout that kernels read"
        if rows > MAX_ROWS:
            return f"it takes up to {MAX_ROWS} rows of activations, and there are {rows}"
        return None

    name = f"{KERNEL}:{weight.type.name}" if isinstance(weight, QTensor) else KERNEL
    return kernel_target(policy, name, declines)


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
        return quantized_matvec(
            packed,
            weights,
            biases=biases,
            residual=residual,
            gated=activation,
            out_dtype=out_dtype,
            target=target,
        )

    product = with_xla_gradient(kernel, reference)
    return product(x, norm, list(weights), list(biases), residual)
