"""Products of few rows, each with the matrix that is chosen for it from a stack: experts.

Which expert a row takes is data. A program reads its number, and from there on does what it would
for a matrix of its own (`rfjax.pallas.quantized_matvec`, `rfjax.pallas.plain_matvec`).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.pallas import plain_matvec as plain
from rfjax.pallas import quantized_matvec as quantized
from rfjax.pallas.pack_activations import PackedActivations
from rfjax.pallas.target import Target, lanes_of
from rfjax.quant.layout import GROUP, LAYOUTS, groups_per_column
from rfjax.quant.qtensor import QTensor
from rfjax.typing import Array, Float, Int

MAX_PAIRS = 256
"""Most rows. Beyond, experts are shared by enough rows that reading them once a row loses."""


class _Chosen:
    """One matrix of a stack, in the place of the reference to a matrix."""

    def __init__(self, stack, number: Array):
        self._stack, self._number = stack, number
        self.dtype, self.shape = stack.dtype, stack.shape[1:]

    @property
    def at(self) -> "_Chosen":
        return self

    def __getitem__(self, index: tuple):
        return self._stack.at[(self._number, *index)]


def heuristic(n: int, k: int, target: Target = "cuda") -> quantized.Config:
    """A configuration that always works: experts are small, so that lanes left idle count."""
    lanes = lanes_of(target)
    groups = groups_per_column(k)
    n_columns = k // (GROUP * groups)

    def lanes_in_use(columns: int) -> float:
        chunks = pl.cdiv(n_columns, columns)
        return min(groups, lanes // columns) * n_columns / (chunks * lanes)

    candidates = [c for c in (1, 2, 4, 8, 16, 32, 64) if c <= lanes]
    columns = max(candidates, key=lambda c: (lanes_in_use(c), c))
    return quantized.Config(min(2, n), min(groups, lanes // columns), columns, 1)


def _quantized_kernel(*refs, layouts, planes, has_bias, gated, config, target):
    experts_ref, *x_refs, output = (*refs[:4], refs[-1])
    stacks = list(refs[4:-1])
    biases = [stacks.pop() if has else None for has in reversed(has_bias)][::-1]
    pair = pl.program_id(0)
    expert = experts_ref[pair]
    first_row = jnp.minimum(pl.program_id(1) * config.rows, output.shape[1] - config.rows)
    results = []
    for layout, names, bias in zip(layouts, planes, biases, strict=True):
        chosen = {name: _Chosen(stacks.pop(0), expert) for name in names}
        (total,) = quantized._accumulate(x_refs, [0], layout, chosen, first_row, config, target)
        if bias is not None:
            total = total + bias[expert, pl.ds(first_row, config.rows)]
        results.append(total)
    total = results[0] if gated is None else gated(*results)
    output[pair, pl.ds(first_row, config.rows)] = total.astype(output.dtype)


def _plain_kernel(*refs, has_bias, gated, config):
    experts_ref, x_ref, *stacks, output = refs
    biases = [stacks.pop() if has else None for has in reversed(has_bias)][::-1]
    pair = pl.program_id(0)
    expert = experts_ref[pair]
    first_row = jnp.minimum(pl.program_id(1) * config.rows, output.shape[1] - config.rows)
    results = []
    for stack, bias in zip(stacks, biases, strict=True):
        (totals,) = plain.products(x_ref, _Chosen(stack, expert), first_row, config, 1)
        if bias is not None:
            totals = [total + bias[expert, first_row + i] for i, total in enumerate(totals)]
        results.append(totals)
    totals = results[0]
    if gated is not None:
        totals = [gated(gate, up) for gate, up in zip(*results, strict=True)]
    for i, total in enumerate(totals):
        output[pair, first_row + i] = total.astype(output.dtype)


# Jitted by itself, so that layers alike are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("gated", "out_dtype", "config", "target"))
def grouped_matvec(
    x: PackedActivations | Float[Array, "T K"],
    stacks: Sequence[QTensor] | Sequence[Float[Array, "E N K"]],
    experts: Int[Array, " P"],
    *,
    biases: Sequence[Float[Array, "E N"] | None] | None = None,
    gated: Callable[[Array, Array], Array] | None = None,
    out_dtype: jnp.dtype,
    config: quantized.Config | plain.Config | None = None,
    target: Target,
) -> Float[Array, "P N"]:
    """`x[p // (P / T)] @ stack[experts[p]].T + bias[experts[p]]` for every p, in one launch.

    Args:
        x: T rows, T a divisor of P; packed if the stacks are.
        stacks: one stack `[E, N, K]`, or where `gated` two of one shape.
        experts: the matrix of each pair, in `[0, E)`.
        biases: f32 `[E, N]` each, or None.
        gated: what makes one result of two; it becomes `gated(x @ w0.T + b0, x @ w1.T + b1)`.
        out_dtype: of the result.
        config: tile sizes; None takes the heuristic's.
    """
    _, n, k = stacks[0].shape
    n_pairs = experts.shape[0]
    biases = list(biases or [None] * len(stacks))
    has_bias = tuple(bias is not None for bias in biases)
    if isinstance(x, PackedActivations):
        packed = [stack for stack in stacks if isinstance(stack, QTensor)]
        layouts = tuple(LAYOUTS[stack.type] for stack in packed)
        config = config or heuristic(n, k, target)
        kernel = functools.partial(
            _quantized_kernel,
            layouts=layouts,
            planes=tuple(tuple(stack.planes) for stack in packed),
            has_bias=has_bias,
            gated=gated,
            config=config,
            target=target,
        )
        rows, operands = [*x], [plane for stack in packed for plane in stack.planes.values()]
        types = [layout.type.name.lower() for layout in layouts]
    else:
        config = config or plain.heuristic(n, k, 1, target)
        kernel = functools.partial(_plain_kernel, has_bias=has_bias, gated=gated, config=config)
        rows, operands = [x], [stack for stack in stacks if not isinstance(stack, QTensor)]
        types = [stack.dtype.name for stack in operands]
    operands += [bias for bias in biases if bias is not None]
    # Neighbouring programs take the same rows of different experts: those of one expert, taken by
    # several pairs, are read at the same time.
    each = n_pairs // rows[0].shape[0]
    row_specs = [
        pl.BlockSpec(
            (1, *row.shape[1:]), lambda p, i, rank=row.ndim: (p // each, *[0] * (rank - 1))
        )
        for row in rows
    ]
    whole = pl.BlockSpec()
    return pl.pallas_call(
        kernel,
        grid=(n_pairs, pl.cdiv(n, config.rows)),
        in_specs=[whole, *row_specs, *(whole for _ in operands)],
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((n_pairs, n), out_dtype),
        compiler_params=plt.CompilerParams(num_warps=config.warps, num_stages=1),
        interpret=target == "interpret",
        name="_".join(["grouped_matvec", *types]),
    )(experts, *rows, *operands)
