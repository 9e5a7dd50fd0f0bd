"""Measures products with single weight matrices: time, rates, shares of the roof, and error."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.bench.op_case import LinearCase
from rfjax.bench.roof import Roof
from rfjax.bench.timing import seconds_per_call
from rfjax.errors import UnsupportedError
from rfjax.io.memory import free_bytes
from rfjax.models.random_params import random_weight
from rfjax.ops.dispatch import DEFAULT_POLICY, KernelPolicy
from rfjax.ops.linear import linear
from rfjax.quant.qtensor import QTensor, Weight, dequantize_packed
from rfjax.typing import Array, Float

_FEW_ROWS = 16
"""Rows up to which a product is bound by reading the weights."""

_PRODUCTS_OF_MANY_ROWS = 2

_CHECKED_ROWS = 256
"""Rows of a matrix whose results are compared with f64."""


@dataclasses.dataclass(frozen=True)
class OpConfig:
    """How to measure single operations.

    Attributes:
        working_set: bytes of weights that one call reads: more than any cache holds.
        max_products: most products in one compiled call.
        repeats: samples, of which the median counts.
        seed: of weights and activations.
    """

    working_set: int = 1 << 30
    max_products: int = 48
    repeats: int = 7
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class LinearResult:
    """One case measured.

    Attributes:
        case: the case.
        dtype: of the activations.
        implementation: what the operation was asked for: "xla", "pallas", or "auto".
        seconds: of one product, packing of the activations included where there is any.
        n_products: products in a compiled call, each with a matrix of its own.
        packed_bytes: of one matrix on the device.
        error: norm of the difference from f64 over the norm of the f64 results.
        copy_share: of the measured copy bandwidth, over the packed bytes.
        matmul_share: of the measured rate of a plain product.
    """

    case: LinearCase
    dtype: str
    implementation: str
    seconds: float
    n_products: int
    packed_bytes: int
    error: float
    copy_share: float | None
    matmul_share: float | None

    @property
    def gb_per_s(self) -> float:
        """Packed bytes read, in 1e9 a second."""
        return self.packed_bytes / self.seconds / 1e9

    @property
    def tflop_per_s(self) -> float:
        """Operations in 1e12 a second."""
        return self.case.flops / self.seconds / 1e12

    def record(self) -> dict[str, object]:
        """Everything as plain values."""
        return {
            "op": "linear",
            "shape": self.case.shape,
            "n": self.case.n,
            "k": self.case.k,
            "type": self.case.type.name,
            "m": self.case.m,
            "dtype": self.dtype,
            "implementation": self.implementation,
            "us": self.seconds * 1e6,
            "gb_per_s": self.gb_per_s,
            "copy_share": self.copy_share,
            "tflop_per_s": self.tflop_per_s,
            "matmul_share": self.matmul_share,
            "error": self.error,
            "packed_bytes": self.packed_bytes,
            "n_products": self.n_products,
        }


def bench_linear(
    cases: Sequence[LinearCase],
    *,
    dtype: str,
    config: OpConfig | None = None,
    roof: Roof | None = None,
    policy: KernelPolicy = DEFAULT_POLICY,
    on_declined: Callable[[LinearCase, str], None] | None = None,
) -> Iterator[LinearResult]:
    """Measure products as the decoder computes them.

    One compiled call holds many products, each with a matrix and activations of its own (XLA would
    join products that share either); together the matrices are so large that none is still in a
    cache when the next call comes to it. Calls are dispatched one after the other; a sample ends
    when the last is done.

    Args:
        cases: what to measure.
        dtype: of the activations.
        config: sizes; None takes the defaults.
        roof: measured ceilings; None leaves the shares out.
        policy: what runs the products.
        on_declined: called with a case and the reason where a kernel that was asked for by name
            declines; the case is left out.
    """
    config = config or OpConfig()
    weights: list[Weight] = []
    made_for: Any = None
    for case in cases:
        n_products = _n_products(case, config)
        # Rows vary fastest: the matrices of one type and shape serve all of them.
        if made_for != (case.n, case.k, case.type) or len(weights) < n_products:
            weights.clear()
            made_for = (case.n, case.k, case.type)
            weights += _matrices(case, n_products, config.seed)
        xs = _activations(case, n_products, dtype, config.seed)
        run = functools.partial(_jitted_products(), policy=policy)
        try:
            timing = seconds_per_call(run, xs, weights[:n_products], repeats=config.repeats)
        except UnsupportedError as error:
            if on_declined is not None:
                on_declined(case, str(error))
            continue
        seconds = timing.median / n_products
        packed = sum(leaf.nbytes for leaf in jax.tree.leaves(weights[0]))
        yield LinearResult(
            case=case,
            dtype=dtype,
            implementation=policy.implementation or "auto",
            seconds=seconds,
            n_products=n_products,
            packed_bytes=packed,
            error=_error(run(xs, weights[:n_products])[0], xs[0], weights[0]),
            copy_share=None if roof is None else packed / seconds / roof.copy_bytes_per_s,
            matmul_share=None if roof is None else case.flops / seconds / roof.matmul_flop_per_s,
        )


def _n_products(case: LinearCase, config: OpConfig) -> int:
    if case.m > _FEW_ROWS:  # long products, bound by arithmetic, whose results take memory
        return _PRODUCTS_OF_MANY_ROWS
    room, free = config.working_set, free_bytes(jax.devices()[0])
    if free is not None:
        room = min(room, free // 4)
    return min(config.max_products, max(2, math.ceil(room / case.weight_bytes)))


def _matrices(case: LinearCase, count: int, seed: int) -> list[Weight]:
    keys = jax.random.split(jax.random.key(seed), count)
    return [random_weight(key, (case.n, case.k), case.type) for key in keys]


def _activations(case: LinearCase, count: int, dtype: str, seed: int) -> list[Array]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), count)
    return [jax.random.normal(key, (case.m, case.k), dtype) for key in keys]


@functools.cache
def _jitted_products():
    def products(xs: list[Array], weights: list[Weight], policy: KernelPolicy) -> list[Array]:
        return [linear(x, weight, policy=policy) for x, weight in zip(xs, weights, strict=True)]

    return jax.jit(products, static_argnames="policy")


def _error(result: Float[Array, "M N"], x: Float[Array, "M K"], weight: Weight) -> float:
    """Of rows spread evenly over the matrix."""
    rows = np.unique(np.linspace(0, weight.shape[0] - 1, _CHECKED_ROWS).astype(np.int64))
    values = np.asarray(_jitted_rows()(weight, rows), np.float64)
    expected = np.asarray(x, np.float64) @ values.T
    found = np.asarray(result[:, rows], np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@functools.cache
def _jitted_rows():
    def take(weight: Weight, rows: Array) -> Array:
        picked = weight[rows]
        wide = dequantize_packed(picked) if isinstance(picked, QTensor) else picked
        return wide.astype(jnp.float32)

    return jax.jit(take)
