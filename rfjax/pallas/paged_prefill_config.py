"""How paged prefill attention is cut into programs and steps."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rfjax.pallas.target import Target, shared_memory

SMALLEST = 16
"""Least size of a block that the matrix units take."""

_PROCESSORS = 128
"""Programs below which a large GPU has processors without work."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut.

    `block_q` rows, each a query head of a token, by `block_k` keys a step, both powers of two of
    at least 16.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


def head_parts(head_dim: int) -> tuple[tuple[int, int], ...]:
    """First element and size of the parts that a head is computed in: one, or two.

    Sizes are powers of two of at least 16. Heads of 80 and 96 are 64 + 16 and 64 + 32, and not
    padded to 128, which would be half or a third more to load and to multiply.
    """
    padded = max(SMALLEST, pl.next_power_of_2(head_dim))
    if padded >= 128 and head_dim <= padded * 3 // 4:
        half = padded // 2
        return ((0, half), (half, max(SMALLEST, pl.next_power_of_2(head_dim - half))))
    return ((0, padded),)


def heuristic(
    batch: int,
    length: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtypes: tuple[jnp.dtype, jnp.dtype],
    target: Target,
) -> Config:
    """A setting for any shape.

    Args:
        batch: rows.
        length: queries of each.
        heads: counts of query and of kv heads.
        capacity: most keys that a row's table finds.
        head_dim: elements of a head.
        dtypes: of the queries, and of the keys and values.
        target: whose instructions are used.
    """
    n_heads, n_kv = heads
    dtype, page_dtype = map(jnp.dtype, dtypes)
    n_rows = length * (n_heads // n_kv)
    block_q = min(128, max(SMALLEST, pl.next_power_of_2(n_rows)))
    block_k = min(64, max(SMALLEST, pl.next_power_of_2(capacity)))
    parts = head_parts(head_dim)
    wide, packed = sum(size for _, size in parts) > 128, page_dtype == jnp.int8
    if dtype == jnp.float32 and target != "interpret":
        if target == "gfx9":
            return Config(min(block_q, 32), min(block_k, 32), 4, 1)
        return Config(SMALLEST, SMALLEST, 8, 1)
    if target == "gfx11":  # operands take twice the registers there, of which there are 256
        if wide:
            return Config(32, SMALLEST, 16 if len(parts) == 1 else 8, 1)
        return Config(min(block_q, 32 if packed else 64), min(block_k, 32), 8, 1)
    if target == "cuda":  # within the shared memory that there is
        roomy = shared_memory(target) >= 160 << 10
        if page_dtype == jnp.float32:
            block_k = max(SMALLEST, block_k // 2)
        # Two programs on a processor are faster than a large one (on an H200 by a thirteenth).
        if (roomy and not wide) or batch * n_kv * pl.cdiv(n_rows, 128) < _PROCESSORS:
            block_q = min(block_q, 64)
        warps = 8 if block_q == 128 else 4
        if wide:
            block_k = max(SMALLEST, block_k // 2)
            few = Config(min(block_q, 64), block_k, 8, 2)
            return Config(block_q, block_k, warps, 3) if roomy else few
        # With two stages a block's loads begin when the one before is done with.
        return Config(block_q, block_k, warps, 3 if roomy or packed or head_dim <= 64 else 2)
    if wide:
        return Config(min(block_q, 64), min(block_k, 32), 4, 1)
    if packed and head_dim > 64:
        return Config(min(block_q, 64), block_k, 4, 1)
    return Config(block_q, block_k, 8, 1)


def tuning_space(
    batch: int,
    length: int,
    heads: tuple[int, int],
    capacity: int,
    head_dim: int,
    dtypes: tuple[jnp.dtype, jnp.dtype],
    target: Target,
) -> tuple[Config, ...]:
    """Settings worth timing, the heuristic's first."""
    first = heuristic(batch, length, heads, capacity, head_dim, dtypes, target)
    if jnp.dtype(dtypes[0]) == jnp.float32:
        return (first,)
    others = [
        Config(block_q, block_k, warps, stages)
        for block_q in (64, 128)
        for block_k in (32, 64, 128)
        for warps in (4, 8)
        for stages in ((2, 3, 4) if target == "cuda" else (1, 2))
        if block_q <= max(first.block_q, 64) and block_k <= max(SMALLEST, capacity)
    ]
    return (first, *(config for config in others if config != first))
