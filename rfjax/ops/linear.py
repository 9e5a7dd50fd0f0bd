"""Products with weight matrices, and rows of an embedding table.

Weights are stored `[out, in]`, as GGUF stores them, packed or as plain numbers. Every function
here is its plain-JAX composition; where a kernel accepts, one launch takes the place of several.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfjax.ops.activation import ACTIVATIONS, IN_KERNELS, gated
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.kernel_product import kernel_products, target_of_product
from rfjax.ops.norm import rms_norm
from rfjax.ops.reduce import rows_product
from rfjax.ops.sharded_product import is_spread, sharded_product
from rfjax.pallas.target import current_target
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed, take_rows
from rfjax.typing import Array, Float, Int


class Projection(NamedTuple):
    """A weight matrix and its bias."""

    weight: Weight  # [out, in]
    bias: Float[Array, " out"] | None = None


class Norm(NamedTuple):
    """An RMS norm before a product."""

    weight: Float[Array, " in"]
    eps: float


def linear(
    x: Float[Array, "T in"],
    weight: Weight,
    bias: Float[Array, " out"] | None = None,
    *,
    residual: Float[Array, "T out"] | None = None,
    out_dtype: jnp.dtype | None = None,
    policy: KernelPolicy = DEFAULT_POLICY,
) -> Float[Array, "T out"]:
    """`residual + x @ weight.T + bias`, accumulated in f32, in `out_dtype` (None: that of `x`).

    In plain JAX a token's result does not depend on how many tokens are computed beside it (see
    `rows_product`).

    Raises:
        UnsupportedError: the policy asks for the kernel by name, and it declines.
    """
    out_dtype = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    target = target_of_product(x.shape[0], weight, policy, x.dtype)
    if target is not None and not is_spread(weight):
        return _kernel(x, None, [Projection(weight, bias)], residual, None, out_dtype, target)[0]
    if target is not None:
        y = _kernel_by_shares(x, weight, bias, out_dtype, target)
        return y if residual is None else residual + y
    y = _plain_linear(x, weight, bias, out_dtype)
    return y if residual is None else residual + y


def linears(
    x: Float[Array, "T in"],
    projections: Sequence[Projection],
    *,
    norm: Norm | None = None,
    policy: KernelPolicy = DEFAULT_POLICY,
) -> list[Float[Array, "T out"]]:
    """Several products of one input, normalised first where `norm` is given; dtype of `x`."""
    results: dict[int, Array] = {}
    targets = [target_of_product(x.shape[0], p.weight, policy, x.dtype) for p in projections]
    for kind in (QTensor, jax.Array):  # one launch for each
        taken = [
            i
            for i, (p, target) in enumerate(zip(projections, targets, strict=True))
            if target is not None and isinstance(p.weight, kind) and not is_spread(p.weight)
        ]
        if taken:
            chosen, target = [projections[i] for i in taken], targets[taken[0]]
            outputs = _kernel(x, norm, chosen, None, None, x.dtype, target)
            results.update(zip(taken, outputs, strict=True))
    if len(results) < len(projections):
        h = x if norm is None else rms_norm(x, norm.weight, norm.eps)
        for i, projection in enumerate(projections):
            if i not in results:
                results[i] = linear(h, projection.weight, projection.bias, policy=policy)
    return [results[i] for i in range(len(projections))]


def gated_linear(
    x: Float[Array, "T in"],
    gate: Projection,
    up: Projection,
    activation: str,
    *,
    norm: Norm | None = None,
    policy: KernelPolicy = DEFAULT_POLICY,
) -> Float[Array, "T F"]:
    """`rfjax.ops.activation.gated` of two products of h, the input or its norm; dtype of `x`."""
    targets = [target_of_product(x.shape[0], p.weight, policy, x.dtype) for p in (gate, up)]
    one_kind = isinstance(gate.weight, QTensor) == isinstance(up.weight, QTensor)
    spread = is_spread(gate.weight) or is_spread(up.weight)
    together = activation in ACTIVATIONS and activation in IN_KERNELS
    if None not in targets and one_kind and not spread and together:
        return _kernel(x, norm, [gate, up], None, activation, x.dtype, targets[0])[0]
    gates, ups = linears(x, [gate, up], norm=norm, policy=policy)
    return gated(gates, ups, activation)


def embed(token_ids: Int[Array, " T"], weight: Weight, dtype: jnp.dtype) -> Float[Array, "T D"]:
    """Rows of the embedding table, in `dtype`. Ids outside `[0, V)` give rows of NaN."""
    return take_rows(weight, token_ids, dtype)


def _kernel(x, norm, projections, residual, activation, out_dtype, target):
    """One launch for weights that are all packed, or all plain."""
    scale, eps = (None, 0.0) if norm is None else norm
    reference = functools.partial(_reference, eps=eps, activation=activation, out_dtype=out_dtype)
    return kernel_products(
        x,
        scale,
        eps,
        [p.weight for p in projections],
        [p.bias for p in projections],
        residual,
        None if activation is None else ACTIVATIONS[activation],
        out_dtype,
        reference=reference,
        target=target,
    )


def _kernel_by_shares(x, weight, bias, out_dtype, target):
    """The kernel on every device's share of a weight; what is not linear comes after the sum."""

    def product(x, weight):
        wide = jnp.dtype("float32")
        return _kernel(x, None, [Projection(weight)], None, None, wide, target)[0]

    y = sharded_product(product, x, weight)
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, :]
    return y.astype(out_dtype)


def _reference(x, norm, weights, biases, residual, *, eps, activation, out_dtype):
    h = x if norm is None else rms_norm(x, norm, eps)
    outputs = [_plain_linear(h, w, b, out_dtype) for w, b in zip(weights, biases, strict=True)]
    if activation is not None:
        gates, ups = outputs
        return [gated(gates, ups, activation)]
    return outputs if residual is None else [residual + outputs[0]]


def _plain_linear(x, weight: Weight, bias: Array | None, out_dtype: jnp.dtype) -> Array:
    if isinstance(weight, QTensor):
        # Held apart: within the product, XLA would unpack every weight once for each of its tiles.
        # And tied to x: it would otherwise unpack all of them before a decode loop, and hold them.
        planes, _ = jax.lax.optimization_barrier((weight.planes, jax.lax.stop_gradient(x)))
        plain = dequantize_packed(dataclasses.replace(weight, planes=planes), x.dtype)
        plain = jax.lax.optimization_barrier(plain)
    else:
        plain = weight.astype(x.dtype)
    # GPUs accumulate in f32 and round once, inside the product: no f32 result is written out.
    rounded = bias is None and out_dtype == x.dtype and current_target() != "interpret"
    y = rows_product(x, plain, out_dtype if rounded else jnp.dtype("float32"))
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, :]
    return y.astype(out_dtype)
