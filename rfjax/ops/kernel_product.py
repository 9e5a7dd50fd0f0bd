"""Products of not too many rows of activations through the kernels, and when that is possible."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rfjax.ops.dispatch import KernelPolicy
from rfjax.ops.kernel_target import kernel_target
from rfjax.ops.norm import rms_norm
from rfjax.ops.sharded_product import is_spread
from rfjax.pallas.grouped_matvec import MAX_PAIRS
from rfjax.pallas.pack_activations import pack_activations
from rfjax.pallas.packed_matmul import MAX_ROWS as MAX_MATMUL
from rfjax.pallas.packed_matmul import packed_matmul
from rfjax.pallas.plain_matvec import MAX_ROWS as MAX_PLAIN
from rfjax.pallas.plain_matvec import TYPES as PLAIN_TYPES
from rfjax.pallas.plain_matvec import plain_matvec
from rfjax.pallas.quantized_matvec import MAX_ROWS, ROWS_AT_ONCE, quantized_matvec
from rfjax.pallas.target import Target
from rfjax.quant.layout import LAYOUTS
from rfjax.quant.qtensor import QTensor, Weight
from rfjax.typing import Array, Float

KERNEL = "quantized_matvec"
"""Name of the kernel in policies and in `rfjax selfcheck`."""

MATMUL_KERNEL = "packed_matmul"
"""The same of that for more rows."""

PLAIN_KERNEL = "plain_matvec"
"""The same of that for plain weights, experts included."""

GROUPED_KERNEL = "grouped_matvec"
"""The same of that for packed experts."""


def target_of_product(
    rows: int, weight: Weight, policy: KernelPolicy, dtype: jnp.dtype
) -> Target | None:
    """The target to trace the kernel for, or None where this product runs in plain JAX.

    Args:
        rows: of activations.
        weight: what they are multiplied with.
        policy: which kernels may run.
        dtype: of the activations.

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    if not isinstance(weight, QTensor):
        kernel, most = PLAIN_KERNEL, MAX_PLAIN
    elif by_matrix_units(rows, dtype):
        kernel, most = MATMUL_KERNEL, MAX_MATMUL
    else:
        kernel, most = KERNEL, MAX_ROWS
    name, reason = _named(kernel, weight)
    if rows > most:
        reason = reason or f"it takes up to {most} rows of activations, and there are {rows}"
    return kernel_target(policy, name, lambda target: reason)


def by_matrix_units(rows: int, dtype: jnp.dtype) -> bool:
    """Whether packed weights meet so many rows of activations on the matrix units, in bfloat16.

    From the fifth row on they are faster there (measured on an H200: up to three times). bfloat16
    activations lose nothing by it; others are multiplied exactly, or in plain JAX.
    """
    return dtype == jnp.bfloat16 and rows > ROWS_AT_ONCE


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


def kernel_products(
    x: Float[Array, "M K"],
    norm: Float[Array, " K"] | None,
    eps: float,
    weights: Sequence[Weight],
    biases: Sequence[Array | None],
    residual: Float[Array, "M N"] | None,
    activation: Callable | None,
    out_dtype: jnp.dtype,
    *,
    reference: Callable,
    target: Target,
) -> list[Array]:
    """Products of one input with weights that are all packed, or all plain, in one launch.

    Args:
        x: any float dtype; RMS-normalised first where `norm`, the norm's weights, is given.
        activation: of a gate, which then is the first of two weights.
        reference: the same function of `(x, norm, weights, biases, residual)` in plain JAX.

    Returns:
        `[M, N_i]` for each weight; a single one with `activation`.
    """

    def kernel(x, norm, weights, biases, residual):
        shared = {
            "biases": biases,
            "residual": residual,
            "gated": activation,
            "out_dtype": out_dtype,
            "target": target,
        }
        if isinstance(weights[0], QTensor) and by_matrix_units(x.shape[0], x.dtype):
            h = x if norm is None else rms_norm(x, norm, eps)
            return packed_matmul(h, weights, **shared)
        if isinstance(weights[0], QTensor):
            packed = pack_activations(x, norm=norm, eps=eps, target=target)
            return quantized_matvec(packed, weights, **shared)
        # Programs of the plain kernel read the whole input: normalised once, before.
        h = x if norm is None else rms_norm(x, norm, eps)
        return plain_matvec(h, weights, **shared)

    product = with_xla_gradient(kernel, reference)
    return product(x, norm, list(weights), list(biases), residual)
