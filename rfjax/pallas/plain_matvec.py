"""Products of few rows of activations with weights that are plain numbers.

Reading the weights is what bounds such a product. A program computes a tile of weight rows for all
M rows of activations, a chunk of K at a time; every array is one chunk of one row, so that all of
them have one layout: a lane multiplies what it loads, and nothing moves between lanes before the
last sum.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.pallas.target import Target
from rfjax.pallas.tuned_config import tuned
from rfjax.pallas.weight_tiles import over_tiles, tile_counts
from rfjax.quant.types import NATIVE_DTYPES
from rfjax.typing import Array, Float

TYPES: Mapping[str, str] = MappingProxyType(
    {dtype: type.name for type, dtype in NATIVE_DTYPES.items()}
)
"""GGML's names of the dtypes that weights may have."""

MAX_ROWS = 4
"""Most rows of activations: from there on matrix units do better."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: powers of two.

    Attributes:
        rows: weight rows of a program.
        columns: elements of K that are loaded at a time.
        unroll: chunks of `columns` whose loads are issued together.
        warps: of a program.
    """

    rows: int
    columns: int
    unroll: int
    warps: int


def heuristic(n: int, k: int, m: int, target: Target = "cuda") -> Config:
    """A configuration that always works, for `n` rows of `k` elements and `m` of activations."""
    rows = 2
    while rows > n:
        rows //= 2
    # Eight elements a lane: a vector of 16 bytes, or two of them.
    columns = min(8 * (64 if target == "gfx9" else 32), 1 << (k - 1).bit_length())
    unroll = 1
    while unroll < (4 if m == 1 else 2) and 2 * unroll * columns <= k:
        unroll *= 2
    return Config(rows, columns, unroll, 1)


def products(x_ref, weight, first_row, config: Config, m: int) -> list[list[Array]]:
    """Within a kernel, the products of one tile of weight rows.

    Args:
        x_ref: `[m, K]`.
        weight: `[N, K]`, a reference or what indexes one.

    Returns:
        For each of m rows of activations the results of `config.rows` weight rows, f32 scalars.
    """
    k = weight.shape[1]
    offsets = jnp.arange(config.columns)

    def add(totals, start, whole: bool):
        """The products of `unroll` chunks, in all of which some elements are inside."""
        chunks = [start + i * config.columns + offsets for i in range(config.unroll)]
        xs, ws = [], []
        for columns in chunks:
            mask = None if whole else columns < k
            load = functools.partial(plt.load, mask=mask, other=None if whole else 0.0)
            # Nobody reads a weight again: it should not push activations out of the caches.
            ws.append(
                [
                    load(weight.at[first_row + i, columns], eviction_policy="evict_first")
                    for i in range(config.rows)
                ]
            )
            xs.append([load(x_ref.at[r, columns]) for r in range(m)])
        for x_chunk, w_chunk in zip(xs, ws, strict=True):
            x_wide = [x.astype(jnp.float32) for x in x_chunk]
            w_wide = [w.astype(jnp.float32) for w in w_chunk]
            totals = tuple(
                tuple(total + w * x for total, w in zip(row, w_wide, strict=True))
                for row, x in zip(totals, x_wide, strict=True)
            )
        return totals

    zero = jnp.zeros((config.columns,), jnp.float32)
    totals = tuple(tuple(zero for _ in range(config.rows)) for _ in range(m))
    step = config.columns * config.unroll
    if k >= step:
        totals = jax.lax.fori_loop(0, k // step, lambda i, t: add(t, i * step, True), totals)
    if k % step:
        totals = add(totals, k - k % step, False)
    return [[jnp.sum(total) for total in row] for row in totals]


def _kernel(*refs, gated, has_bias, has_residual, config, m):
    refs = list(refs)
    take = lambda n: [refs.pop(0) for _ in range(n)]  # noqa: E731
    (x_ref,) = take(1)
    weights = take(len(has_bias))
    biases = [take(1)[0] if has else None for has in has_bias]
    residual = take(1)[0] if has_residual else None
    outputs = refs

    def product(index: int, first_row):
        totals = products(x_ref, weights[index], first_row, config, m)
        bias = biases[index]
        if bias is not None:
            numbers = [bias[first_row + i] for i in range(config.rows)]
            totals = [[t + b for t, b in zip(row, numbers, strict=True)] for row in totals]
        return totals

    def write(output, first_row, totals):
        for r, row in enumerate(totals):
            for i, total in enumerate(row):
                at = (r, first_row + i)
                if residual is not None:
                    total = total + residual[at].astype(jnp.float32)
                output[at] = total.astype(output.dtype)

    def compute(index: int, first_row):
        totals = product(index, first_row)
        if gated is not None:
            pairs = zip(totals, product(1, first_row), strict=True)
            totals = [[gated(g) * u for g, u in zip(*pair, strict=True)] for pair in pairs]
        write(outputs[index], first_row, totals)

    over_tiles(outputs, config.rows, compute)


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("gated", "out_dtype", "config", "target"))
def plain_matvec(
    x: Float[Array, "M K"],
    weights: Sequence[Float[Array, "N K"]],
    *,
    biases: Sequence[Array | None] | None = None,
    residual: Float[Array, "M N"] | None = None,
    gated=None,
    out_dtype: jnp.dtype,
    config: Config | None = None,
    target: Target,
) -> list[Array]:
    """`x @ w.T + bias` for weights that share their input, in one launch, accumulated in f32.

    Numbers of 32 bits or fewer are multiplied as they are, whatever the two dtypes: nothing is
    rounded before the result.

    Args:
        x: bfloat16, float16 or float32; M at most `MAX_ROWS`.
        weights: matrices `[N_i, K]`, likewise, their N_i not necessarily alike.
        biases: f32 `[N_i]` each, or None.
        residual: added to the one result of a single weight.
        gated: an activation function; the result is then `gated(x @ w0.T) * (x @ w1.T)`.
        out_dtype: of the results.
        config: tile sizes; None takes measured ones for the device, or the heuristic's.

    Returns:
        `[M, N_i]` for each weight; a single one where `gated`.
    """
    m, k = x.shape
    sizes = [weight.shape[0] for weight in weights]
    shape, type = (min(sizes), k, m), TYPES[weights[0].dtype.name]
    config = config or tuned(Config, "plain_matvec", type, *shape, target)
    config = config or heuristic(*shape, target)
    biases = list(biases or [None] * len(weights))
    kernel = functools.partial(
        _kernel,
        gated=gated,
        has_bias=tuple(bias is not None for bias in biases),
        has_residual=residual is not None,
        config=config,
        m=m,
    )
    operands = [x, *weights, *(bias for bias in biases if bias is not None)]
    operands += [residual] if residual is not None else []
    outputs = sizes[:1] if gated is not None else sizes
    results = pl.pallas_call(
        kernel,
        grid=(sum(tile_counts(outputs, config.rows)),),
        out_shape=[jax.ShapeDtypeStruct((m, n), out_dtype) for n in outputs],
        compiler_params=plt.CompilerParams(num_warps=config.warps, num_stages=1),
        interpret=target == "interpret",
        name="plain_matvec_" + "_".join(weight.dtype.name for weight in weights),
    )(*operands)
    return list(results)
