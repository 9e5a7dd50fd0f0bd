"""Products of few rows of activations through the kernels, and when that is possible."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.sharded_product import is_spread
from rfjax.pallas.grouped_matvec import MAX_PAIRS
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.plain_matvec import MAX_ROWS as MAX_PLAIN
from rfjax.pallas.plain_matvec import TYPES as PLAIN_TYPES
from rfjax.pallas.plain_matvec import plain_matvec
from rfjax.pallas.quantized_matvec import MAX_ROWS, quantized_matvec
from rfjax.pallas.target import Target
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.typing import Array, Float

KERNEL = "quantized_matvec"
"""Name of the kernel in policies and in `rfjax selfcheck`."""

PLAIN_KERNEL = "plain_matvec"
"""The same of that for plain weights, experts included."""

GROUPED_KERNEL = "grouped_matvec"
"""The same of that for packed experts."""


def target_of_product(rows: int, weight: Weight, policy: KernelPolicy) -> Target | None:
    """The target to trace the kernel for, or None where this product runs in plain JAX.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    kernel, most = (KERNEL, MAX_ROWS) if isinstance(weight, QTensor) else (PLAIN_KERNEL, MAX_PLAIN)
    name, reason = _named(kernel, weight)
    if rows > most:
        reason = reason or f"it takes up to {most} rows of activations, and there are {rows}"
    return kernel_target(policy, name, lambda target: reason)


def target_of_experts(
    n_pairs: int, stacks: Sequence[Weight], policy: KernelPolicy
) -> Target | None:
    """The same for products of (token, expert) pairs with stacks of experts.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    plain = [not isinstance(stack, QTensor) for stack in stacks]
    targets = []
    for stack in stacks:
        name, reason = _named(PLAIN_KERNEL if all(plain) else GROUPED_KERNEL, stack)
        if any(plain) and not all(plain):
            reason = "some experts' weights are packed, and others plain numbers"
        elif any(is_spread(stack) for stack in stacks):
            reason = "the experts are spread over a mesh"
        elif n_pairs > MAX_PAIRS:
            reason = f"it takes up to {MAX_PAIRS} pairs of token and expert, and has {n_pairs}"
        targets.append(kernel_target(policy, name, lambda target, reason=reason: reason))
    return None if None in targets else targets[0]


def _named(kernel: str, weight: Weight) -> tuple[str, str | None]:
    """The name of a kernel for a weight in policies, and why it declines the type, or None."""
    if isinstance(weight, QTensor):
        known = weight.type in LAYOUTS
        reason = None if known else f"{weight.type.name} has no packed layout that kernels read"
        return f"{kernel}:{weight.type.name}", reason
    type = PLAIN_TYPES.get(weight.dtype.name)
    if type is None:
        return kernel, f"it takes no weights of dtype {weight.dtype.name}"
    return f"{kernel}:{type}", None


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
        return plain_matvec(
            x,
            weights,
            biases=biases,
            residual=residual,
            gated=activation,
            out_dtype=out_dtype,
            target=target,
        )

    return with_xla_gradient(kernel, reference)(x, list(weights), list(biases), residual)
