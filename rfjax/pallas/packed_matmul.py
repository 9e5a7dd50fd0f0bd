"""Products of a moderate number of rows of activations with packed weights, on the matrix units.

Weights are read packed, once for every tile of activations, and become bfloat16 in registers (see
`rfjax.pallas.bf16_weights`); products accumulate in f32. Between the few rows where reading the
weights bounds a product (`rfjax.pallas.quantized_matvec`) and the many where one unpacked copy in
memory is paid for by the speed of a plain product.

A program computes some weight rows for some rows of activations, over all of K or a share of it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.pallas.bf16_weights import (
    PIECES,
    WORDS,
    Bf16Weights,
    constants,
    fewest_groups,
    in_lane_order,
)
from rfjax.pallas.target import Target, shared_memory
from rfjax.pallas.weight_tiles import over_tiles, tile_counts
from rfjax.quant.bits import Array
from rfjax.quant.layout import GROUP, LAYOUTS, groups_per_column
from rfjax.quant.qtensor import QTensor
from rfjax.quant.types import BLOCK_SIZES

_SMALLEST = 16
"""Least size of an operand that the matrix units take."""

_LEAST_COLUMNS = 4
"""Columns of a step, of which a product of the least size takes four words each."""

_PROGRAMS = 256
"""About as many as keep a GPU busy: where tiles are fewer, K is split."""

_SMALL_PROGRAMS = 512
"""The same of programs of two warps, for up to 16 rows of activations."""

_LARGE_PROGRAMS = 128
"""The same of programs for 128 rows of activations and more, of which a processor holds one."""

_MANY_ROWS = 16384
"""Weight rows from which tiles of twice as many are faster."""

_GATED_TOKENS = 64
"""Rows of activations of a program up to which it applies the gate: with more, two sums leave too
few registers (on an H200 the product took ten times as long), and the gate is applied afterwards.
"""

_SHARED_REST = 2 << 10
"""Bytes of shared memory left for what Triton needs besides."""

MAX_ROWS = 256
"""Rows of activations from which a copy of the weight in bfloat16 and a plain product are faster
(measured on an H200: 1.5 to 1.8 times as slow at 256)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut: powers of two, but that `ahead` may be 0.

    Attributes:
        rows: weight rows of a program.
        tokens: rows of activations of a program, at least 16.
        columns: columns of the layout in a step, at least 4: a product takes four elements of each.
        groups: groups of these columns in a step.
        splits: shares of K, each with programs of its own; they are added up afterwards.
        warps: of a program.
        ahead: steps whose loads are under way, besides the one that is computed.
    """

    rows: int
    tokens: int
    columns: int
    groups: int
    splits: int
    warps: int
    ahead: int


def heuristic(n: int, k: int, m: int, target: Target = "cuda") -> Config:
    """A configuration for `n` rows of `k` elements and `m` of activations."""
    most = 256 if target == "cuda" else 64
    tokens = min(most, max(_SMALLEST, pl.next_power_of_2(m)))
    few = target == "cuda" and tokens <= 32
    rows = 64 if target == "gfx11" else 128  # operands take twice the registers there
    if few and n < _MANY_ROWS:
        rows = 64
    while rows > max(n, _SMALLEST):
        rows //= 2
    columns = 2 * _LEAST_COLUMNS if few else _LEAST_COLUMNS
    programs = _LARGE_PROGRAMS if tokens >= 128 else _PROGRAMS
    splits = _splits(n, k, m, (rows, tokens, columns), programs)
    warps = 8 if tokens == 256 or target == "gfx11" else 4
    return Config(rows, tokens, columns, 1, splits, warps, 2 if target == "cuda" else 1)


def _shared_bytes(config: Config, weights: Sequence[QTensor], n_results: int) -> int:
    """Shared memory of a program, from above, as Triton's pipeline takes it on NVIDIA GPUs.

    A step's activations are kept once more than its weights: until their product is done. Of
    scales a step loads those of whole super-blocks, however few of their groups it takes; with
    what is padded, up to twice the weights' bytes were seen, and an eighth more without them.
    """
    elements = config.columns * GROUP * config.groups
    activations = 2 * config.tokens * elements

    def of_element(weight: QTensor) -> float:
        loaded = 2 if BLOCK_SIZES[weight.type][0] > GROUP else 9 / 8
        return loaded * weight.nbytes / math.prod(weight.shape)

    each = sorted(map(of_element, weights), reverse=True)[:n_results]
    return activations * (config.ahead + 1) + int(config.rows * elements * sum(each)) * config.ahead


def _chosen(
    shape: tuple[int, int, int],
    weights: Sequence[QTensor],
    together: int,
    gated: bool,
    target: Target,
) -> Config:
    """The heuristic's configuration for what a program holds of these weights."""
    config = heuristic(*shape, target)
    if target == "cuda" and config.tokens == _SMALLEST:
        return _fitting(_of_few_tokens(shape, weights, gated), together, weights, 1 + gated)
    both = gated and config.tokens <= _GATED_TOKENS  # a program computes tiles of both
    if both:
        config = dataclasses.replace(
            config, rows=max(_SMALLEST, config.rows // 2), splits=max(1, config.splits // 2)
        )
        if target == "cuda" and config.tokens == 64:
            config = dataclasses.replace(config, columns=2 * _LEAST_COLUMNS, ahead=1)
    if together > 1:
        config = dataclasses.replace(config, columns=_LEAST_COLUMNS)
    if target == "cuda":
        config = _fitting(config, together, weights, 2 if both else 1)
        if gated and not both and config.tokens <= _GATED_TOKENS:
            halved = dataclasses.replace(config, rows=max(_SMALLEST, config.rows // 2))
            config = _fitting(halved, together, weights, 2)
        return config
    if target == "gfx11" and together > 1:  # of 256 registers
        return dataclasses.replace(config, tokens=min(config.tokens, 32))
    wide = together > 1 or any(LAYOUTS[weight.type].low == "q8" for weight in weights)
    if target == "gfx9" and wide:  # steps ahead would not fit into 64 KiB of local memory
        return dataclasses.replace(config, ahead=0)
    return config


def _of_few_tokens(shape: tuple[int, int, int], weights: Sequence[QTensor], gated: bool) -> Config:
    """On NVIDIA GPUs, for rows of activations that fill one operand of the least size at most.

    There the time is that of unpacking, a chain of dependent steps: many small programs overlap
    theirs, on an H200 1.2 to 1.8 times as fast as few large ones. Two groups of a super-block at
    once share the loads of its scales.
    """
    n, k, m = shape
    nested = any(BLOCK_SIZES[weight.type][0] > GROUP for weight in weights)
    rows = 32 if nested or gated or n < _MANY_ROWS else 64
    while rows > max(n, _SMALLEST):
        rows //= 2
    # With loads of two planes a step more under way helps, with those of one it costs more.
    ahead = 2 if not nested or all(LAYOUTS[weight.type].high for weight in weights) else 1
    columns = 2 * _LEAST_COLUMNS
    splits = _splits(n, k, m, (rows, _SMALLEST, columns), _SMALL_PROGRAMS)
    return Config(rows, _SMALLEST, columns, 1 + nested, splits, 2, ahead)


def _splits(n: int, k: int, m: int, tile: tuple[int, int, int], programs: int) -> int:
    """Shares of K that make up to this many programs of tiles of rows, tokens and columns."""
    rows, tokens, columns = tile
    n_groups = groups_per_column(k)
    steps = pl.cdiv(k // (GROUP * n_groups), columns) * n_groups
    tiles = pl.cdiv(n, rows) * pl.cdiv(m, tokens)
    splits = 1
    while 2 * splits * tiles <= programs and 16 * splits <= steps:
        splits *= 2
    return splits


def _fitting(config: Config, groups: int, weights: Sequence[QTensor], n_results: int) -> Config:
    """The configuration with as much under way as the device's shared memory holds."""
    config = dataclasses.replace(config, groups=max(config.groups, groups))
    room = shared_memory("cuda") - _SHARED_REST
    while _shared_bytes(config, weights, n_results) > room:
        if config.ahead > 1:
            config = dataclasses.replace(config, ahead=config.ahead - 1)
        elif config.tokens > _SMALLEST:
            config = dataclasses.replace(config, tokens=config.tokens // 2)
        elif config.rows > _SMALLEST:
            config = dataclasses.replace(config, rows=config.rows // 2)
        else:
            break
    return config


def arranged(x: Array, config: Config, target: Target) -> Array:
    """Activations in the order in which products take them.

    Args:
        x: bf16 `[M, K]`.

    Returns:
        `[chunks of columns, groups, pieces, M, 4 columns]`, M and the columns filled up by zeros.
    """
    m, k = x.shape
    groups, columns = groups_per_column(k), config.columns
    n_columns = k // (GROUP * groups)
    x = x.reshape(m, n_columns, groups, 2, WORDS, 4)
    x = jnp.pad(x, ((0, -m % config.tokens), (0, -n_columns % columns), *((0, 0),) * 4))
    x = x.reshape(x.shape[0], -1, columns, groups, 2, WORDS, 4)
    x = x.transpose(1, 3, 4, 6, 0, 2, 5)  # chunk, group, half, byte, row, column, word
    words = x.reshape(*x.shape[:2], PIECES, x.shape[4], WORDS * columns)
    return in_lane_order(words, columns, target)


def _kernel(*refs, layouts, planes, shapes, gated, has_bias, has_residual, config, m, target):
    refs = list(refs)
    take = lambda n: [refs.pop(0) for _ in range(n)]  # noqa: E731
    x_ref, constants_ref = take(2)
    weights = [dict(zip(names, take(len(names)), strict=True)) for names in planes]
    biases = [take(1)[0] if has else None for has in has_bias]
    residual = take(1)[0] if has_residual else None
    outputs = refs
    first_token = pl.program_id(0) * config.tokens
    tokens = first_token + jnp.arange(config.tokens, dtype=jnp.int32)
    share = pl.program_id(2)
    n_columns, n_groups = shapes

    def products(indices: Sequence[int], rows: Array) -> list[Array]:
        """Of some weights' rows: f32 `[rows, tokens]` each."""
        tiles = [
            Bf16Weights(
                layouts[i],
                weights[i],
                constants_ref,
                rows,
                n_columns=n_columns,
                n_groups=n_groups,
                columns=config.columns,
                target=target,
            )
            for i in indices
        ]
        places = jnp.arange(WORDS * config.columns, dtype=jnp.int32)
        per_chunk = n_groups // config.groups

        def step(t, totals):
            chunk = jax.lax.div(t, per_chunk)
            first = jax.lax.rem(t, per_chunk) * config.groups
            pieces = [tile.groups(chunk, first, config.groups) for tile in tiles]
            for g, of_weights in enumerate(zip(*pieces, strict=True)):
                for p, operands in enumerate(zip(*of_weights, strict=True)):
                    at = x_ref.at[chunk, first + g, p, tokens[:, None], places[None, :]]
                    x = plt.load(at)
                    totals = tuple(
                        total + plt.dot(w, x, trans_b=True)
                        for total, w in zip(totals, operands, strict=True)
                    )
            return totals

        n_steps = pl.cdiv(n_columns, config.columns) * per_chunk
        each = pl.cdiv(n_steps, config.splits)
        first = 0 if config.splits == 1 else share * each
        last = n_steps if config.splits == 1 else jnp.minimum(first + each, n_steps)
        zero = jnp.zeros((config.rows, config.tokens), jnp.float32)
        return list(jax.lax.fori_loop(first, last, step, tuple(zero for _ in indices)))

    def compute(index: int, first_row):
        n = outputs[index].shape[1]
        whole = n >= config.rows
        rows = (first_row if whole else 0) + jnp.arange(config.rows, dtype=jnp.int32)
        loaded = rows if whole else jnp.minimum(rows, n - 1)
        indices = (0, 1) if gated is not None else (index,)
        totals = products(indices, loaded)
        for i, which in enumerate(indices):
            bias = biases[which]
            if bias is not None:
                totals[i] = totals[i] + plt.load(bias.at[loaded])[:, None]
        total = totals[0] if gated is None else gated(totals[0]) * totals[1]
        mask = None
        if m % config.tokens or not whole:
            mask = (tokens < m)[None, :] & (rows < n)[:, None]
        at = (tokens[None, :], rows[:, None])
        if residual is not None:
            other = None if mask is None else 0.0
            total = total + plt.load(residual.at[at], mask=mask, other=other).astype(jnp.float32)
        output = outputs[index]
        if config.splits > 1:
            at = (share * m + tokens[None, :], rows[:, None])
        plt.store(output.at[at], total.astype(output.dtype), mask=mask)

    over_tiles(outputs, config.rows, compute, axis=1)


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("gated", "out_dtype", "config", "target"))
def packed_matmul(
    x: Array,
    weights: Sequence[QTensor],
    *,
    biases: Sequence[Array | None] | None = None,
    residual: Array | None = None,
    gated=None,
    out_dtype: jnp.dtype,
    config: Config | None = None,
    target: Target,
) -> list[Array]:
    """`x @ w.T + bias` for weights that share their input, in one launch.

    Activations and weights are rounded to bfloat16, products accumulate in f32.

    Args:
        x: `[M, K]`, any float dtype.
        weights: matrices `[N_i, K]` of types with a layout (`rfjax.quant.layout.LAYOUTS`).
        biases: f32 `[N_i]` each, or None.
        residual: `[M, N]`, added to the one result of a single weight.
        gated: an activation function; the result is then `gated(x @ w0.T) * (x @ w1.T)`.
        out_dtype: of the results.
        config: how to cut the work; None takes the heuristic's.

    Returns:
        `[M, N_i]` for each weight; a single one where `gated`.
    """
    m, k = x.shape
    sizes = [weight.shape[0] for weight in weights]
    shape = min(sizes), k, m
    layouts = tuple(LAYOUTS[weight.type] for weight in weights)
    together = max(fewest_groups(layout) for layout in layouts)
    if config is None:
        config = _chosen(shape, weights, together, gated is not None, target)
    config = dataclasses.replace(config, groups=max(config.groups, together))
    biases = list(biases or [None] * len(weights))
    n_groups = groups_per_column(k)
    assert config.columns % 4 == 0 and n_groups % config.groups == 0, (config, k)

    ends_inside = config.splits == 1 and (gated is None or config.tokens <= _GATED_TOKENS)
    kernel = functools.partial(
        _kernel,
        layouts=layouts,
        planes=tuple(tuple(weight.planes) for weight in weights),
        shapes=(k // (GROUP * n_groups), n_groups),
        gated=gated if ends_inside else None,
        has_bias=tuple(ends_inside and bias is not None for bias in biases),
        has_residual=ends_inside and residual is not None,
        config=config,
        m=m,
        target=target,
    )
    operands = [arranged(x.astype(jnp.bfloat16), config, target)]
    operands.append(jnp.asarray(constants(n_groups, config.columns, target)))
    for weight, n in zip(weights, sizes, strict=True):
        operands += [plane.reshape(n, -1) for plane in weight.planes.values()]
    outputs = sizes
    if ends_inside:
        operands += [bias for bias in biases if bias is not None]
        operands += [residual] if residual is not None else []
        outputs = sizes[:1] if gated is not None else sizes
    dtype = out_dtype if ends_inside else jnp.float32
    results = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(m, config.tokens), sum(tile_counts(outputs, config.rows)), config.splits),
        out_shape=[jax.ShapeDtypeStruct((config.splits * m, n), dtype) for n in outputs],
        compiler_params=plt.CompilerParams(num_warps=config.warps, num_stages=config.ahead + 1),
        interpret=target == "interpret",
        name="packed_matmul_" + "_".join(weight.type.name.lower() for weight in weights),
    )(*operands)
    if ends_inside:
        return list(results)
    return _sum_of_shares(results, biases, residual, gated, out_dtype, config.splits)


def _sum_of_shares(results, biases, residual, gated, out_dtype, splits: int) -> list[Array]:
    """What a program does at its end where it computes all of K and holds both of a gate's sums."""
    totals = []
    for parts, bias in zip(results, biases, strict=True):
        total = jnp.sum(parts.reshape(splits, -1, parts.shape[1]), axis=0)
        totals.append(total if bias is None else total + bias[None, :])
    if gated is not None:
        totals = [gated(totals[0]) * totals[1]]
    if residual is not None:
        totals[0] = totals[0] + residual.astype(jnp.float32)
    return [total.astype(out_dtype) for total in totals]
