"""The kernel that adds up what several programs made of one row's context."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rfjax.ops.mask import Mask
from rfjax.pallas.decode_span import decode_span
from rfjax.pallas.exponential import LOG2_E, exp2
from rfjax.pallas.online_softmax import FLOOR
from rfjax.pallas.target import Target
from rfjax.typing import Array, Float, Int

_COMBINED = 8192
"""Numbers that four warps combine; more would not stay in their registers."""


def combine_attention(
    positions: Int[Array, " B"],
    acc: Float[Array, "B N splits H"],
    best: Float[Array, "B N splits"],
    total: Float[Array, "B N splits"],
    sinks: Float[Array, " N"] | None = None,
    *,
    dtype: jnp.dtype,
    mask: Mask,
    capacity: int,
    block_k: int,
    target: Target,
) -> Float[Array, "B N H"]:
    """Sums of the splits' results, each shrunk to the largest score of all, over their weights.

    Args:
        positions: of the new tokens: a split that had no block of keys has written nothing.
        acc: values times weights.
        best: largest scores, as powers of two.
        total: sums of weights.
        sinks: of each head one more logit, without a value.
        dtype: of the result.
        mask, capacity, block_k: as the splits had them.
    """
    batch, n_heads, splits, head_dim = acc.shape
    kernel = functools.partial(
        _kernel, mask=mask, capacity=capacity, block_k=block_k, target=target
    )
    padded = pl.next_power_of_2(head_dim)
    operands = (positions, acc, best, total)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((batch, n_heads, head_dim), dtype),
        grid=(n_heads, batch),
        compiler_params=plt.CompilerParams(
            num_warps=8 if splits * padded > _COMBINED else 4, num_stages=1
        ),
        interpret=target == "interpret",
        name="combine_attention",
    )(*operands, *(() if sinks is None else (sinks,)))


def _kernel(
    positions_ref,  # [B] int32
    acc_ref,  # [B, N, splits, H] f32
    best_ref,  # [B, N, splits] f32
    total_ref,  # [B, N, splits] f32
    *refs,  # [N] f32 if there are sinks, [B, N, H]
    mask: Mask,
    capacity: int,
    block_k: int,
    target: Target,
):
    *sinks, out_ref = refs
    head, row = pl.program_id(0), pl.program_id(1)
    n_splits, head_dim = acc_ref.shape[2:]
    _, _, _, blocks = decode_span(mask, positions_ref[row], capacity, block_k)
    splits = jnp.arange(n_splits, dtype=jnp.int32)
    dims = jnp.arange(pl.next_power_of_2(head_dim), dtype=jnp.int32)
    # A split without work has written nothing.
    worked = (splits == 0) | (splits < blocks)
    best = plt.load(best_ref.at[row, head, splits], mask=worked, other=FLOOR)
    total = plt.load(total_ref.at[row, head, splits], mask=worked, other=0.0)
    highest, sink = jnp.max(best), None
    if sinks:
        sink = sinks[0][head] * LOG2_E
        highest = jnp.maximum(highest, sink)
    weights = jnp.where(worked, exp2(best - highest, target), 0.0)
    both = worked[:, None] & (dims < head_dim)[None, :]
    acc = plt.load(acc_ref.at[row, head, splits[:, None], dims[None, :]], mask=both, other=0.0)
    total = jnp.sum(weights * total)
    if sink is not None:
        total += exp2(sink - highest, target)
    norm = 1.0 / jnp.maximum(total, 1e-30)
    out = jnp.sum(acc * weights[:, None], axis=0) * norm
    plt.store(out_ref.at[row, head, dims], out.astype(out_ref.dtype), mask=dims < head_dim)
